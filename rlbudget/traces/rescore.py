"""Recorded traces scored anew: by the scorer of a name, or by their task's own verifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

from rlbudget.errors import UserError
from rlbudget.tasks.files import task_of
from rlbudget.tasks.load import verify
from rlbudget.tasks.task import Question
from rlbudget.traces.trace import Exit, Final, Trace, scorer_of


@dataclass
class Changes:
    """How many answers a rescoring changed."""

    answers: int = 0
    to_right: int = 0
    to_wrong: int = 0


def rescored(traces: Iterable[Trace], changes: Changes, scorer: str | None) -> Iterator[Trace]:
    """The traces with every answer scored anew, changes counted in ``changes``.

    Without a ``scorer`` each trace's own is taken. Raises ``UserError`` for an unknown scorer and a
    trace that was scored by a verifier whose data it does not hold.
    """
    for trace in traces:
        name = scorer or _own(trace)
        anew = partial(_anew, score=cache(_judge(trace, name)), changes=changes)
        yield replace(
            trace,
            final=anew(trace.final),
            checkpoints=tuple(replace(c, exit=anew(c.exit)) for c in trace.checkpoints),
            meta={**trace.meta, "scorer": name},
        )


Given = TypeVar("Given", Exit, Final)


def _anew(given: Given, *, score: Callable[[str], int], changes: Changes) -> Given:
    match = score(given.answer)
    changes.answers += 1
    changes.to_right += given.exact_match < match
    changes.to_wrong += given.exact_match > match
    return replace(given, exact_match=match)


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
