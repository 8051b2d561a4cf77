"""Scoring by itself: a file of answers, or recorded traces scored again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import Flag, OptionalFolder, OptionalName
from rlbudget.console import note, tell
from rlbudget.errors import UserError
from rlbudget.tasks.files import Columns, load_answers
from rlbudget.tasks.peer import math_verify_says
from rlbudget.tasks.scorer import Asked
from rlbudget.tasks.scorers import find_scorer
from rlbudget.traces.rescore import Changes, rescored
from rlbudget.traces.store import TraceWriter, is_store, iter_traces

SHOWN = 10


@dataclass(frozen=True)
class Score:
    """Score a file of answers and targets, or recorded traces again."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ANSWERS_OR_TRACES")]]
    """Table of answers and targets (JSONL, CSV, Parquet), or a folder of traces."""
    scorer: OptionalName = None
    """auto, exact, text, number, math, choice, regex:PATTERN or python:PACKAGE.FUNCTION; by default
    auto for a table, and for traces the one they name."""
    answer_column: OptionalName = None
    """Column of what the model wrote, by default answer; the answer is looked for in it."""
    target_column: OptionalName = None
    """Column of the reference answer, or of a list of right ones; by default target."""
    options_column: OptionalName = None
    """Column of the options of a multiple choice; by default options, where there is one."""
    question_column: OptionalName = None
    """Column of the question, by default question, where there is one: it may list the options."""
    no_peer: Flag = False
    """Do not ask math-verify for its opinion."""
    out: OptionalFolder = None
    """Folder for the traces with their new scores."""

    def execute(self) -> None:
        """Run it."""
        if self.scorer is not None:
            find_scorer(self.scorer)
        if is_store(self.source):
            for option in ("answer", "target", "options", "question"):
                if getattr(self, f"{option}_column") is not None:
                    raise UserError(f"--{option}-column is for a table; traces have no columns")
            if self.out is not None and is_store(self.out):
                raise UserError(f"{self.out} already holds traces: choose another --out")
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
            what, become = "", "would become"
        else:
            with TraceWriter(self.out) as writer:
                for trace in traces:
                    writer.add(trace)
            what, become = f" scored anew to {self.out}", "became"
        tell(
            f"{changes.answers} answers{what}: {changes.to_right} {become} right,"
            f" {changes.to_wrong} wrong"
        )

    def _score(self) -> None:
        columns = Columns(
            question=self.question_column, target=self.target_column, options=self.options_column
        )
        answers, name = load_answers(
            self.source, answer=self.answer_column or "answer", columns=columns, scorer=self.scorer
        )
        scorer = find_scorer(name)
        right = peer_right = 0
        differing = []
        for one in answers:
            given = scorer.score(
                one.answer, *one.targets, options=one.options.texts, question=one.question
            )
            right += given
            if self.no_peer:
                continue
            said = [math_verify_says(one.answer, target) for target in one.targets]
            peer = max((verdict for verdict in said if verdict is not None), default=None)
            peer_right += peer or 0
            if peer != given:
                target = one.targets[0]
                found = scorer.find(one.answer, target, Asked(one.options.texts, one.question))
                differing.append((one.place, target, found, given, peer))
        share = right / len(answers)
        tell(f"{len(answers)} answers, scorer {name}: {right} right, exact match {share:.1%}")
        if self.no_peer:
            return
        tell(f"math-verify: {peer_right} right; {len(differing)} scored otherwise")
        for place, target, found, given, peer in differing[:SHOWN]:
            other = "no answer in time" if peer is None else _verdict(peer)
            pair = f"{found[:80]!r} for {target[:80]!r}"
            tell(f"  {place}: {pair}: {_verdict(given)}, math-verify {other}")
        if len(differing) > SHOWN:
            note(f"… and {len(differing) - SHOWN} more")


def _verdict(right: int) -> str:
    return "right" if right else "wrong"
