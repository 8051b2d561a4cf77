"""The one exception that means "the caller can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: one line saying what is wrong, where, and what would be right.

    The command line prints the line and exits with status 2; library callers catch it as
    a ``ValueError``.
    """


def missing_extra(extra: str, package: str) -> UserError:
    """The error for an import that an extra would have brought."""
    return UserError(f'{package} is not installed; run: pip install "rlbudget[{extra}]"')
