"""Scoring the answers of an interchange line that came without ``exact_match``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.choice import LETTERS
from rlbudget.tasks.scorer import Scorer
from rlbudget.tasks.scorers import find_scorer, scorer_of_task
from rlbudget.traces.schema import BadLineError

_found = lru_cache(maxsize=64)(find_scorer)


@dataclass(slots=True)
class Absent:
    """Scores the answers of one line, each different one once.

    By the scorer that the caller names, else the one that ``meta.scorer`` names, else that of a
    well-known task (``gsm8k``, ``math``, ``squad``), else ``auto``. ``meta.options``, where it is
    a list of texts, are the options of the question. What is wrong with a name is said when an
    answer needs it.
    """

    target: str
    question: str
    task: str
    meta: dict[str, Any]
    named: str | None
    """by the caller"""
    _known: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scorer's, whether or not an answer was scored."""
        own = self.meta.get("scorer")
        return self.named or (scorer_of_task(self.task) if own is None else str(own))

    def score(self, answer: str) -> int:
        """1 if the answer is the target, else 0. Raises ``BadLineError`` for an unknown scorer."""
        if answer not in self._known:
            options = self.meta.get("options")
            if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
                options = ()
            if len(options) > len(LETTERS):
                raise BadLineError(
                    f"$.meta.options holds {len(options)} texts; {len(LETTERS)} are the most"
                )
            self._known[answer] = self._scorer().score(
                answer, self.target, options=options, question=self.question
            )
        return self._known[answer]

    def noted(self) -> dict[str, Any]:
        """The line's ``meta``, with the scorer's name if it scored an answer and is no default."""
        if not self._known or self.name == self.meta.get("scorer", "auto"):
            return self.meta
        return {**self.meta, "scorer": self.name}

    def _scorer(self) -> Scorer:
        if self.named is None and self.name.startswith("python:"):
            raise BadLineError(
                f"$.meta.scorer {self.name!r} would run code that a data file names: if you"
                " trust it, name it by --scorer"
            )
        try:
            return _found(self.name)
        except UserError as error:
            raise BadLineError(f"an exact_match is left out and there is {error}") from None
