"""What a folder of traces was recorded with, known from before its first trace.

``settings.json`` holds plain values by name beside their digest; each part names the digest too,
so parts of two recordings never pass as one. A folder of imported traces has no such file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rlbudget.errors import UserError
from rlbudget.files import write_bytes

SETTINGS = "settings.json"
_VERSION = 1
_LARGEST = 1 << 20
"""bytes"""
_KEPT = "record into another folder, or with the same settings"

Value = str | int | float | bool | None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    settings: dict[str, Value]
    sha256: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a recording, by name."""

    values: Mapping[str, Value]
    digest: str
    """sha256 (hex)"""

    @property
    def stride(self) -> int | None:
        """Of the grid on which all checkpoints lie; None where there is none."""
        found = self.values.get("stride")
        return found if isinstance(found, int) else None


NONE = Settings({}, "")
"""of a folder that was not recorded"""


def settings_of(values: Mapping[str, Value]) -> Settings:
    """Settings with their digest. Raises ``ValueError`` for what is not a finite plain value."""
    text = json.dumps(dict(values), sort_keys=True, allow_nan=False)
    return Settings(json.loads(text), hashlib.sha256(text.encode()).hexdigest())


def read_settings(folder: Path) -> Settings:
    """Those of a folder, ``NONE`` where it has none; ``UserError`` for a damaged file."""
    path = folder / SETTINGS
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
    except FileNotFoundError:
        return NONE
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None
    try:
        found = msgspec.json.decode(content, type=_File)
        settings = settings_of(found.settings)
    except (ValueError, RecursionError):
        raise UserError(_damaged(path)) from None
    if (found.version, found.sha256) != (_VERSION, settings.digest):
        raise UserError(_damaged(path))
    return settings


def write_settings(folder: Path, settings: Settings) -> None:
    """Make them those of a folder; ``OSError`` where it cannot be written."""
    content = {
        "version": _VERSION,
        "settings": dict(settings.values),
        "sha256": settings.digest,
    }
    write_bytes(folder / SETTINGS, (json.dumps(content, indent=1) + "\n").encode())


def check_same(folder: Path, settings: Settings) -> None:
    """``UserError`` that names what differs, unless ``folder`` has these settings."""
    there = read_settings(folder)
    if there == settings:
        return
    if there == NONE:
        raise UserError(
            f"{folder} holds traces that do not say what they were recorded with (imported,"
            " harvested): record into another folder"
        )
    if settings == NONE:
        raise UserError(f"{folder} holds recorded traces: choose another folder for other ones")
    names = [*there.values, *(name for name in settings.values if name not in there.values)]
    differing = [
        f"{name} {there.values.get(name)!r}, not {settings.values.get(name)!r}"
        for name in names
        if there.values.get(name) != settings.values.get(name)
        or (name in there.values) != (name in settings.values)
    ]
    raise UserError(f"{folder} was recorded with {'; '.join(differing)}: {_KEPT}")


def _damaged(path: Path) -> str:
    return (
        f"{os.fspath(path)} is damaged, so nobody knows how these traces were recorded: record"
        " them again"
    )
