"""The parts of a folder, numbered from 0 without a gap, so that one that is gone is missed.

Beside the parts stands how many they are, or nobody would miss the last one: written when a folder
is opened to go on with it and when it is closed. So of the parts of a recording that is under way
or was killed the newest alone could go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.files import write_bytes

COUNT = "_parts"
"""file with the number of parts; readers of Parquet folders pass over names that begin so"""
_PART = re.compile(r"part-([0-9]{6}|[1-9][0-9]{6,})\.parquet")
_COUNTED = re.compile(rb"[0-9]{1,12}\n")
_LARGEST = 16
"""bytes"""


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:06d}.parquet"


def parts_there(folder: Path) -> list[Path]:
    """The parts that a folder holds, in order, whether one is missing or not."""
    return sorted((p for p in folder.iterdir() if _PART.fullmatch(p.name)), key=_number)


def require_all(folder: Path) -> list[Path]:
    """``parts_there``; ``UserError`` that names the first one that is missing."""
    counted = _counted(folder)  # before they are listed: a writer counts after it wrote
    parts = parts_there(folder)
    whole = next((n for n, part in enumerate(parts) if _number(part) != n), len(parts))
    if whole < max(counted, len(parts)):
        raise UserError(
            f"{folder / part_name(whole)} is missing, with all its traces: run the command that"
            " made it again, rlbudget record … --resume"
        )
    return parts


def renumber(folder: Path, parts: Sequence[Path]) -> None:
    """Number and count the parts anew, in their order; ``OSError`` where that cannot be written.

    Who goes on with a folder makes the traces that are missing again, in parts of his own.
    """
    for number, part in enumerate(parts):
        if _number(part) != number:
            part.rename(part.with_name(part_name(number)))
    if parts:
        write_count(folder, len(parts))
    else:
        (folder / COUNT).unlink(missing_ok=True)


def write_count(folder: Path, n: int) -> None:
    """Write how many parts there are; ``OSError`` where it cannot be written."""
    write_bytes(folder / COUNT, b"%d\n" % n)


def _counted(folder: Path) -> int:
    """How many parts there were at least; 0 where nobody counted them."""
    path = folder / COUNT
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None
    if not _COUNTED.fullmatch(content):
        raise UserError(
            f"{path} is damaged, so nobody knows how many parts there were: delete it and run the"
            " command that made it again, rlbudget record … --resume"
        )
    return int(content)


def _number(part: Path) -> int:
    return int(part.name.removeprefix("part-").removesuffix(".parquet"))
