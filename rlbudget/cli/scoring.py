"""Scoring by itself: a file of answers, or recorded traces scored anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import Flag, Name, OptionalFolder, OptionalName
from rlbudget.console import note, tell
from rlbudget.errors import UserError
from rlbudget.tasks.peer import math_verify_says
from rlbudget.tasks.rows import BadRowError, rows_of
from rlbudget.tasks.scorers import find_scorer
from rlbudget.traces.rescore import Changes, rescored
from rlbudget.traces.store import TraceWriter, is_store, iter_traces

SHOWN = 10


@dataclass(frozen=True)
class Score:
    """Score a file of answers and targets, or recorded traces anew."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ANSWERS_OR_TRACES")]]
    """Table of answers and targets (JSONL, CSV, Parquet), or a folder of traces."""
    scorer: OptionalName = None
    """auto, exact, text, number, math, choice, regex:PATTERN or python:PACKAGE.FUNCTION; by default
    auto for a table, and for traces the one they name."""
    answer_column: Name = "answer"
    """Column of what the model wrote; the answer is looked for in it."""
    target_column: Name = "target"
    """Column of the reference answer."""
    options_column: Name = "options"
    """Column of the options of a multiple choice, where there is one."""
    question_column: Name = "question"
    """Column of the question, where there is one: it may list the options."""
    no_peer: Flag = False
    """Do not ask math-verify for its opinion."""
    out: OptionalFolder = None
    """Folder for the traces with their new scores."""

    def execute(self) -> None:
        """Run it."""
        if is_store(self.source):
            self._rescore()
            return
        if self.out is not None:
            raise UserError("--out takes traces that were scored anew; a table of answers has none")
        self._score()

    def _rescore(self) -> None:
        changes = Changes()
        traces = rescored(iter_traces(self.source), changes, self.scorer)
        if self.out is None:
            for _ in traces:
                pass
        else:
            with TraceWriter(self.out) as writer:
                for trace in traces:
                    writer.add(trace)
        tell(
            f"{changes.answers} answers: {changes.to_right} would become right,"
            f" {changes.to_wrong} wrong"
            if self.out is None
            else f"{changes.answers} answers scored anew to {self.out}: {changes.to_right} became"
            f" right, {changes.to_wrong} wrong"
        )

    def _score(self) -> None:
        scorer = find_scorer(self.scorer or "auto")
        n = right = peer_right = 0
        differing = []
        for place, text, target, options, question in self._rows():
            given = scorer.score(text, target, options=options, question=question)
            n, right = n + 1, right + given
            if self.no_peer:
                continue
            peer = math_verify_says(text, target)
            peer_right += peer or 0
            if peer != given:
                found = scorer.find_in(text, target, options=options, question=question)
                differing.append((place, target, found, given, peer))
        if not n:
            raise UserError(f"{self.source} holds no answer")
        tell(f"{n} answers, scorer {scorer.name}: {right} right, exact match {right / n:.1%}")
        if self.no_peer:
            return
        tell(f"math-verify: {peer_right} right; {len(differing)} scored otherwise")
        for place, target, found, given, peer in differing[:SHOWN]:
            other = "no answer in time" if peer is None else _verdict(peer)
            said = f"{found[:80]!r} for {target[:80]!r}: {_verdict(given)}, math-verify {other}"
            tell(f"  {place}: {said}")
        if len(differing) > SHOWN:
            note(f"… and {len(differing) - SHOWN} more")

    def _rows(self) -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
        for place, row in rows_of(self.source):
            if isinstance(row, BadRowError):
                raise UserError(f"{place}: {row}")
            for column in (self.answer_column, self.target_column):
                if row.get(column) is None:
                    raise UserError(f"{place}: there is no {column!r}; name the column by"
                                    " --answer-column or --target-column")  # fmt: skip
            options = row.get(self.options_column)
            listed = tuple(map(str, options)) if isinstance(options, list) else ()
            question = row.get(self.question_column)
            yield (
                place,
                str(row[self.answer_column]),
                str(row[self.target_column]),
                listed,
                question if isinstance(question, str) else "",
            )


def _verdict(right: int) -> str:
    return "right" if right else "wrong"
