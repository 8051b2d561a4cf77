"""Scoring the answers of an interchange line that came without ``exact_match``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.scorers import Scorer, find_scorer, scorer_of_task
from rlbudget.traces.schema import BadLineError

_found = lru_cache(maxsize=64)(find_scorer)


class Absent:
    """Scores the answers of one line, each different one once.

    By the scorer that the caller names, else the one that ``meta.scorer`` names, else that of a
    well-known task (``gsm8k``, ``math``, ``squad``), else ``auto``. ``meta.options``, where it is
    a list of texts, are the options of the question.
    """

    __slots__ = ("_known", "_meta", "_named", "_question", "_scorer", "_target", "_task")

    def __init__(
        self, target: str, question: str, task: str, meta: dict[str, Any], named: str | None
    ) -> None:
        """Raises nothing: what is wrong with a name is said when an answer needs it."""
        self._target = target
        self._question = question
        self._task = task
        self._meta = meta
        self._named = named
        self._scorer: Scorer | None = None
        self._known: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The scorer's, whether or not an answer was scored."""
        own = self._meta.get("scorer")
        return self._named or (scorer_of_task(self._task) if own is None else str(own))

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
