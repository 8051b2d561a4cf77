"""What asks a server or is the gateway, imported where it is needed: aiohttp and more."""

from __future__ import annotations

from types import ModuleType


def served() -> ModuleType:
    """``rlbudget.cli.served``."""
    from rlbudget.cli import served

    return served


def online() -> ModuleType:
    """``rlbudget.cli.online``."""
    from rlbudget.cli import online

    return online
