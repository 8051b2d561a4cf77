"""What the process of ``rlbudget.tasks.scorer`` runs: a scorer on a text of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlbudget.tasks.mathematics import compare_here
from rlbudget.tasks.scorer import Asked
from rlbudget.tasks.scorers import find_scorer

try:
    from rlbudget.tasks.equality import equal
except ModuleNotFoundError:  # as in ``same_mathematics``, which then names the extra
    pass
else:
    compare_here(equal)


def answered(
    what: str, name: str, text: str, target: Any, options: Sequence[str], question: str
) -> int | str | bool:
    """A scorer's ``score`` (``target`` is a list), ``find`` or ``same``."""
    scorer, asked = find_scorer(name), Asked(tuple(options), question)
    if what == "score":
        return scorer.judge(text, target, asked)
    if what == "find":
        return scorer.finds(text, target, asked)
    return scorer.compares(text, target, asked)
