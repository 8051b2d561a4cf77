"""Scoring the answers of an interchange line that came without ``exact_match``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.schema import BadLineError
from rlbudget.tasks.scorers import Scorer, find_scorer, scorer_of_task

_found = lru_cache(maxsize=64)(find_scorer)


class Absent:
    """Scores the answers of one line, each different one once.

    By the scorer that the caller names, else the one that ``meta.scorer`` names, else that of a
    well-known task (``gsm8k``, ``math``, ``squad``), else ``auto``. ``meta.options``, where it is
    a list of texts, are the options of the question.
    """

    __slots__ = ("_known", "_meta", "_question", "_scorer", "_target", "name")

    def __init__(
        self, target: str, question: str, task: str, meta: dict[str, Any], named: str | None
    ) -> None:
        """Raises nothing: what is wrong with a name is said when an answer needs it."""
        self._target = target
        self._question = question
        self._meta = meta
        self._known: dict[str, int] = {}
        self._scorer: Scorer | None = None
        own = meta.get("scorer")
        self.name: str = named or (own if isinstance(own, str) else None) or scorer_of_task(task)
        """the scorer's name, whether or not an answer was scored"""
        if named is None and own is not None and not isinstance(own, str):
            self.name = repr(own)

    def score(self, answer: str) -> int:
        """1 if the answer is the target, else 0. Raises ``BadLineError`` for an unknown scorer."""
        if answer not in self._known:
            options = self._meta.get("options")
            texts = isinstance(options, list) and all(isinstance(one, str) for one in options)
            self._known[answer] = self._chosen().score(
                answer,
                self._target,
                options=options if texts and options else (),
                question=self._question,
            )
        return self._known[answer]

    def noted(self) -> dict[str, Any]:
        """The line's ``meta``, with the scorer's name if it scored an answer and is no default."""
        if self._scorer is None or self.name == self._meta.get("scorer", "auto"):
            return self._meta
        return {**self._meta, "scorer": self.name}

    def _chosen(self) -> Scorer:
        if self._scorer is None:
            if self.name == self._meta.get("scorer") and self.name.startswith("python:"):
                raise BadLineError(
                    f"$.meta.scorer {self.name!r} would run code that a data file names: if you"
                    " trust it, name it by --scorer"
                )
            try:
                self._scorer = _found(self.name)
            except UserError as error:
                raise BadLineError(f"an exact_match is left out and there is {error}") from None
        return self._scorer
