"""The exception for mistakes that the caller can correct, and texts made safe to show.

What a model, a server or a file says must not control the terminal, and no message shows a key.
``rlbudget.console`` shows all texts so.
"""

from __future__ import annotations

import re


class UserError(ValueError):
    """A user's mistake: one line saying what is wrong, where, and what would be right.

    The command line prints the line and exits with status 2; library callers catch it as
    a ``ValueError``.
    """


_EXTRAS = {
    **dict.fromkeys(("orjson", "pyarrow", "re2", "rich", "tyro"), "cli"),
    **dict.fromkeys(("tokenizers", "torch", "transformers"), "models"),
    **dict.fromkeys(("gymnasium", "matplotlib", "sklearn", "stable_baselines3"), "train"),
    **dict.fromkeys(
        ("aiohttp", "alembic", "prometheus_client", "sqlalchemy", "starlette", "uvicorn"), "serve"
    ),
}
"""package -> the extra that brings it"""


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """The error that names the extra of a missing package; None where no extra has it."""
    package = (error.name or "").partition(".")[0]
    return missing_extra(_EXTRAS[package], package) if package in _EXTRAS else None


def missing_extra(extra: str, package: str) -> UserError:
    """The error for a package that an extra installs."""
    return UserError(f'{package} is not installed; run: pip install "rlbudget[{extra}]"')


# Among them what moves the cursor, and what reverses the direction of writing or hides in it.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_KEYS = (
    (re.compile(r"://[^/\s@]+@"), "://***@"),
    (re.compile(r"(?i)([?&][\w.-]{0,40}(?:key|token|secret|passw|auth|sig)[\w.-]{0,40}=)[^&\s'\"]+"),
     r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), r"\1 ***"),
)  # fmt: skip
_LONGEST_LINE = 2_000
"""characters of a message"""


def visible(text: str) -> str:
    """A text with its control characters escaped, except line breaks and tabs: what a model wrote
    must not control the terminal."""  # fmt: skip
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def without_keys(text: str) -> str:
    """A text with ``***`` for the user, the password and the keys in addresses."""
    if "://" in text or "=" in text or " " in text:
        for pattern, shown in _KEYS:
            text = pattern.sub(shown, text)
    return text


def one_line(text: str) -> str:
    """A message as one line of bounded length that shows no key and controls no terminal."""
    line = without_keys(" ".join(text.split()))
    return visible(line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} …")
