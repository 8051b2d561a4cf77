"""The exception for mistakes that the caller can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: one line saying what is wrong, where, and what would be right.

    The command line prints the line and exits with status 2; library callers catch it as
    a ``ValueError``.
    """


_EXTRAS = {
    **dict.fromkeys(("orjson", "pyarrow", "re2", "rich", "tyro"), "cli"),
    **dict.fromkeys(("tokenizers", "torch", "transformers"), "models"),
    **dict.fromkeys(("gymnasium", "matplotlib", "sklearn", "stable_baselines3"), "train"),
    **dict.fromkeys(("aiohttp", "prometheus_client", "starlette", "uvicorn"), "serve"),
}
"""package -> the extra that brings it"""


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """The error that names the extra of a missing package; None where no extra has it."""
    package = (error.name or "").partition(".")[0]
    return missing_extra(_EXTRAS[package], package) if package in _EXTRAS else None


def missing_extra(extra: str, package: str) -> UserError:
    """The error for a package that an extra installs."""
    return UserError(f'{package} is not installed; run: pip install "rlbudget[{extra}]"')
