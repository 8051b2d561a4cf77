"""Recorded traces scored anew: by the scorer of a name, or by their task's own verifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from rlbudget.errors import UserError
from rlbudget.tasks.files import task_of
from rlbudget.tasks.load import verify
from rlbudget.tasks.task import Question
from rlbudget.traces.trace import Trace, scorer_of


@dataclass
class Changes:
    """What a rescoring moved, counted in answers."""

    answers: int = 0
    to_right: int = 0
    to_wrong: int = 0

    def add(self, before: int, after: int) -> None:
        """Count one answer."""
        self.answers += 1
        self.to_right += before < after
        self.to_wrong += before > after


def rescored(traces: Iterable[Trace], changes: Changes, scorer: str | None) -> Iterator[Trace]:
    """The traces with every answer scored anew, what moved counted in ``changes``.

    Without a ``scorer`` each trace's own is taken. Raises ``UserError`` for a trace whose task has
    a verifier that it does not bring along, and where it is told another scorer than a name.
    """
    for trace in traces:
        name = scorer or _own(trace)
        score = _judge(trace, name)
        known: dict[str, int] = {}

        def match(answer: str, before: int, known: dict[str, int] = known,
                  score: Callable[[str], int] = score) -> int:  # fmt: skip
            if answer not in known:
                known[answer] = score(answer)
            changes.add(before, known[answer])
            return known[answer]

        yield replace(
            trace,
            final=replace(
                trace.final, exact_match=match(trace.final.answer, trace.final.exact_match)
            ),
            checkpoints=tuple(
                replace(
                    c, exit=replace(c.exit, exact_match=match(c.exit.answer, c.exit.exact_match))
                )
                for c in trace.checkpoints
            ),
            meta={**trace.meta, "scorer": name},
        )


def _own(trace: Trace) -> str:
    return "verifier" if {"family", "entry"} <= set(trace.meta) else scorer_of(trace)


def _judge(trace: Trace, name: str) -> Callable[[str], int]:
    options = tuple(map(str, trace.meta.get("options", ())))
    question = Question(trace.question_id, trace.question, trace.target, trace.meta, options)
    if name != "verifier":
        return partial(task_of(trace.task, (), name).score, question)
    if not {"family", "entry"} <= set(trace.meta):
        raise UserError(
            f"trace {trace.trace_id!r} was scored by its task's verifier and does not hold what"
            " that needs: name a --scorer"
        )
    return partial(verify, question)
