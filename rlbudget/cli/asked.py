"""What asks a server, imported where one is asked: it needs aiohttp."""

from __future__ import annotations

from types import ModuleType


def served() -> ModuleType:
    """``rlbudget.cli.served``."""
    from rlbudget.cli import served

    return served
