"""The folders of shards: a recording in parts, below one folder, each named by its place."""

from __future__ import annotations

import re
from pathlib import Path

_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


def shard_folder(out: Path, shard: tuple[int, int]) -> Path:
    """Where shard ``(i, n)`` of what goes to ``out`` lies, 1 the first."""
    return out / f"shard-{shard[0]:04d}-of-{shard[1]:04d}"


def shards_there(out: Path) -> dict[Path, tuple[int, int]]:
    """The shards in a folder, in order, each ``(i, n)``; none where there is no folder."""
    return {
        path: (int(named[1]), int(named[2]))
        for path in sorted(out.iterdir() if out.is_dir() else ())
        if (named := _SHARD.fullmatch(path.name)) and path.is_dir()
    }
