"""Replay, rules, the oracle, the frontier and the paired bootstrap: what a stop rule is worth."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbudget.evaluate.evaluation import evaluate_split
    from rlbudget.evaluate.folder import evaluate_folder
    from rlbudget.evaluate.leak import LeakReport, leak_check

__all__ = ["LeakReport", "evaluate_folder", "evaluate_split", "leak_check"]


def __getattr__(name: str) -> Any:
    places = {
        "evaluate_split": "evaluation",
        "evaluate_folder": "folder",
        "LeakReport": "leak",
        "leak_check": "leak",
    }
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
