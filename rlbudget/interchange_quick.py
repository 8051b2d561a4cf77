"""The quick way to read a line of the interchange, for lines in their plainest form.

What it accepts is a part of what the careful way accepts: it looks at less and never says why.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from rlbudget.traces import (
    LARGEST_COUNT,
    Checkpoint,
    Exit,
    Final,
    Probe,
    Trace,
    names_problem,
    problem_of,
)


def quick_trace(line: bytes, version: int) -> Trace | None:
    """The trace of a line in its plainest form, every field given and of its type.

    None for all other lines, good or bad: they take the careful way, which says what is wrong.
    """
    try:
        record = orjson.loads(line)
        if record.keys() != _TRACE_KEYS or record["version"] != version:
            return None
        final = record["final"]
        if final.keys() != _FINAL_KEYS or type(record["meta"]) is not dict:
            return None
        if type(record["checkpoints"]) is not list:  # an empty text would pass for an empty list
            return None
        end = final["thinking_tokens"]
        before = -1
        points = []
        for given in record["checkpoints"]:
            point = _checkpoint(given)
            if not before < point.thinking_tokens <= end:
                return None
            before = point.thinking_tokens
            points.append(point)
        trace = Trace(
            record["trace_id"], record["question_id"], record["task"], record["question"],
            record["target"], record["model"], record["seed"],
            Final(final["answer"], final["exact_match"], end, final["answer_tokens"]),
            tuple(points), record["meta"],
        )  # fmt: skip
        texts = (trace.trace_id, trace.question_id, trace.task, trace.question, trace.target,
                 trace.model, trace.final.answer)  # fmt: skip
        counts = (trace.seed, trace.final.exact_match, trace.final.thinking_tokens,
                  trace.final.answer_tokens)  # fmt: skip
        if {*map(type, texts)} != {str} or {*map(type, counts)} != {int}:
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return trace if problem_of(trace, checkpoints=False) is None else None


_TRACE_KEYS = {
    "version", "trace_id", "question_id", "task", "question", "target", "model", "seed", "meta",
    "final", "checkpoints",
}  # fmt: skip
_FINAL_KEYS = {"answer", "exact_match", "thinking_tokens", "answer_tokens"}


def _checkpoint(point: Any) -> Checkpoint:
    """Raises one of the errors that ``quick_trace`` takes for "not the plainest form".

    All laws of a checkpoint but its place among the others.
    """
    tokens, signals, end = point["thinking_tokens"], point["signals"], point["exit"]
    answer, match, answer_tokens = end["answer"], end["exact_match"], end["answer_tokens"]
    if (
        type(tokens) is not int or type(answer) is not str or type(match) is not int
        or type(answer_tokens) is not int or len(end) != 3
        or not 0 <= tokens <= LARGEST_COUNT or not 0 <= answer_tokens <= LARGEST_COUNT
        or not 0 <= match <= 1 or not answer.isascii()
    ):  # fmt: skip
        raise TypeError
    kinds = {*map(type, signals.values())}
    if kinds != {float}:
        if not kinds <= {float, int}:
            raise TypeError
        signals = {name: float(value) for name, value in signals.items()}
    if not math.isfinite(sum(signals.values())) or names_problem(tuple(signals)):
        raise TypeError
    probe = None
    trial = point.get("probe")
    if trial is not None:
        text, confidence, cost = trial["answer"], trial["confidence"], trial["tokens"]
        if (
            type(text) is not str or type(confidence) not in (float, int)
            or type(cost) is not int or len(trial) != 3
            or not 0 <= cost <= LARGEST_COUNT or not 0 <= confidence <= 1 or not text.isascii()
        ):  # fmt: skip
            raise TypeError
        probe = Probe(text, float(confidence), cost)
    if len(point) != 3 + ("probe" in point):
        raise TypeError
    return Checkpoint(tokens, signals, Exit(answer, match, answer_tokens), probe)
