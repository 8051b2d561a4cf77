"""From a decision log to what training and the stream evaluation take.

An audited request whose right answer is known becomes a trace with all its exits scored, by the
scorer of its task. One that has a verdict only is scored by equality with the answer that was
judged: all of it where that was right, and where it was wrong the exits that gave the same. What
that leaves open is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.audit import Audit
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.log import Feedback, LoggedRequest
from rlbudget.tasks.scorers import extracted, find_scorer, scorer_of_requests, vote_key
from rlbudget.traces.store import TraceWriter, existing_ids, iter_traces
from rlbudget.traces.trace import Trace, scorer_of

Judge = Callable[[str], int | None]
"""answer -> 0 or 1, None where it cannot be told"""


@dataclass(frozen=True, slots=True)
class HarvestStats:
    """What a harvest did with the audited requests."""

    n: int
    """traces written"""
    known: int
    """left out: there already, or of a question that other traces hold"""
    waiting: int
    """left out: no outcome yet"""
    undecided: int
    """left out: the verdict does not decide every exit"""
    damaged: int
    """lines of the log that could not be read"""


def harvest(
    entries: Entries, out: Path | str, *, without: Sequence[Path] = (), resume: bool = False
) -> HarvestStats:
    """Write the audited requests of a log whose outcome is known to a folder of traces.

    ``without`` are folders of traces whose questions are left out: a contest wants questions that
    the served policy has not seen. ``resume`` adds to a folder of an earlier harvest. Raises
    ``UserError`` for traces that are there already and nothing to write.
    """
    seen = {trace.question_id for folder in without for trace in iter_traces(folder)}
    n = known = waiting = undecided = 0
    there = existing_ids(out)
    if there and not resume:
        raise UserError(f"{out} already holds traces: add --resume, or choose another --out")
    traces = []
    for request_id, trace in entries.audits.items():
        outcome = entries.outcomes.get(request_id)
        if request_id in there or trace.question_id in seen:
            known += 1
        elif outcome is None:
            waiting += 1
        elif (scored := scored_trace(trace, outcome)) is None:
            undecided += 1
        else:
            traces.append(scored)
            n += 1
    if not n and not there:
        raise UserError(
            f"none of the {len(entries.audits)} audited requests can be used: {waiting} wait"
            f" for their outcome, {undecided} are not decided by it, {known} are known"
        )
    with TraceWriter(out, append=resume) as writer:
        for trace in traces:
            writer.add(trace)
    return HarvestStats(n, known, waiting, undecided, entries.damaged)


def judge_of(trace: Trace, outcome: Feedback) -> Judge:
    """What an outcome says about other answers to the same request."""
    name = scorer_of_requests(scorer_of(trace))
    scorer, given, target = find_scorer(name), trace.final.answer, outcome.target
    if target is not None:
        return lambda answer: scorer.score(answer, target, question=trace.question)
    judged = extracted(given, name)

    def same(answer: str) -> bool:
        return vote_key(answer, name) == vote_key(given, name) or bool(
            judged and scorer.score(answer, judged, question=trace.question)
        )

    if outcome.right:
        return lambda answer: int(same(answer))
    return lambda answer: 0 if same(answer) else None


def scored_trace(trace: Trace, outcome: Feedback) -> Trace | None:
    """An audited request's trace with its target and every answer scored; None where the outcome
    does not decide that."""  # fmt: skip
    judge = judge_of(trace, outcome)
    given = trace.final.answer
    target = outcome.target or (given if outcome.right else f"not {given}")
    final = judge(given)
    points = []
    for point in trace.checkpoints:
        match = judge(point.exit.answer)
        if match is None:
            return None
        points.append(replace(point, exit=replace(point.exit, exact_match=match)))
    if final is None or not target.strip():
        return None
    return replace(
        trace,
        target=target,
        final=replace(trace.final, exact_match=final),
        checkpoints=tuple(points),
        meta={
            **trace.meta,
            "scorer": scorer_of_requests(scorer_of(trace)),
            "outcome": _kind(outcome),
        },
    )


def _kind(outcome: Feedback) -> str:
    return "target" if outcome.target is not None else "right" if outcome.right else "wrong"


def stopped_answer(trace: Trace, served: LoggedRequest) -> str | None:
    """What the policy's stop would have given; None where it names no checkpoint of the trace."""
    at, reason = served.stop.stopped_at, served.stop.reason
    if reason == "escalate":
        return None  # another model's
    if at is None and reason == "loop":
        at = served.stop.thinking_tokens
    if at is None:
        return trace.final.answer
    return next((c.exit.answer for c in trace.checkpoints if c.thinking_tokens == at), None)


def full_tokens(trace: Trace) -> int:
    """Thinking and answer tokens of the full decode."""
    return max(trace.final.thinking_tokens + trace.final.answer_tokens, 1)


def audit_of(trace: Trace, served: LoggedRequest, outcome: Feedback) -> Audit | None:
    """An audited request for the stream evaluation; None where its ``stopped_answer`` is not known.

    Every outcome counts. Where one does not tell whether the stop gave a right answer, it may be.
    """
    judge, stopped = judge_of(trace, outcome), stopped_answer(trace, served)
    if stopped is None:
        return None
    full, early = judge(trace.final.answer), judge(stopped)
    return Audit(
        full or 0, early or 0, full_tokens(trace), served.stop.tokens, may_be_right=early is None
    )
