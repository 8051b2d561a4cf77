"""The help of a subcommand as plain text of 80 columns, from what tyro writes without boxes.

tyro keeps the line breaks of a docstring; here an option's text flows.
"""

from __future__ import annotations

import re
from textwrap import wrap

_WIDTH = 80
_COLUMN = 26
"""where the texts of the options begin"""


def plain_help(written: str) -> str:
    """Titles with a colon instead of frames, options with their texts beside them."""
    lines: list[str] = []
    for line in _joined(written):
        if not line.startswith("  "):
            lines += wrap(line, _WIDTH, subsequent_indent="  " * line.startswith("usage")) or [""]
            continue
        if not lines[-1] and lines[-2].startswith("  "):
            lines.pop()  # an empty line of tyro's between two options
        lines += _option(line)
    return "\n".join(lines).rstrip() + "\n"


def _joined(written: str) -> list[str]:
    """The lines without frames, those that go on with an option joined to its first."""
    kept: list[str] = []
    for line in map(str.rstrip, written.splitlines()):
        if line and not line.strip(" -"):
            kept[-1] = f"{kept[-1].strip()}:"
        elif line.startswith("   "):
            kept[-1] += f"  {line.strip()}"
        else:
            kept.append(line)
    return kept


def _option(line: str) -> list[str]:
    """An option and its text, in the second column."""
    name, *texts = re.split(r"\s{2,}", line.strip())
    text = wrap(" ".join(texts), _WIDTH - _COLUMN, break_on_hyphens=False)
    beside = len(name) + 4 <= _COLUMN
    first = f"  {name}".ljust(_COLUMN) + text.pop(0) if beside and text else f"  {name}"
    return [first, *(" " * _COLUMN + more for more in text)]
