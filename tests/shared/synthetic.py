"""Makers of synthetic trace tables: reasoners whose best stops are understood.

``make_table`` imitates a real record: hidden difficulty, an answer that becomes right after
some checkpoint or never, answers lost again by thinking on, and signals that know about it
through noise. ``tabular_table`` and ``never_stop_table`` are tiny and have known optima.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlbudget.arrays import Floats, Ints
from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

TABULAR_KINDS = 4


def renamed(table: TraceTable, prefix: str) -> TraceTable:
    """The same traces as other questions."""
    ids = np.array([prefix + name for name in table.question_ids.tolist()])
    return replace(table, question_ids=ids)


def make_table(
    n: int,
    seed: int = 0,
    *,
    stride: int = 8,
    mean_tokens: int = 120,
    traces_per_question: int = 1,
    probes: bool = True,
    informative: float = 1.0,
) -> TraceTable:
    """A table of ``n`` traces of a made-up reasoner.

    ``mean_tokens`` is about the mean thinking of a full decode; ``informative`` scales how far
    the signals move when the answer is right (0: pure noise). About a third of the traces are
    right at once and pay long for it, about a fifth lose a right answer, a tenth is never right.
    One in a hundred ends before its first checkpoint.
    """
    rng = np.random.default_rng(seed)
    n_questions = -(-n // traces_per_question)
    question = np.arange(n) // traces_per_question
    difficulty = rng.beta(1.6, 1.6, n_questions)[question]
    final_thinking = np.maximum(
        4, mean_tokens * (0.35 + 1.1 * difficulty) * rng.lognormal(0.0, 0.3, n)
    ).astype(np.int64)
    final_thinking[rng.random(n) < 0.01] = stride // 2
    # A trace with T tokens of thinking has its checkpoints strictly before token T.
    lengths = (final_thinking - 1) // stride
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trace = np.repeat(np.arange(n), lengths)
    step = np.arange(offsets[-1]) - offsets[trace]
    thinking = (step + 1) * stride

    ever_right = rng.random(n) > 0.04 + 0.14 * difficulty
    found = final_thinking * np.where(
        rng.random(n) < 0.35 - 0.2 * difficulty, 0.05, rng.beta(1.5, 2.0, n)
    )
    lost = np.where(
        rng.random(n) < 0.18 + 0.1 * difficulty,
        found + (final_thinking - found) * rng.beta(2.0, 1.3, n),
        np.inf,
    )
    right = ever_right[trace] & (thinking >= found[trace]) & (thinking < lost[trace])
    final_right = ever_right & (final_thinking < lost)
    lucky = rng.random(len(trace)) < 0.04
    exact_match = (right | lucky).astype(np.float64)

    signals = signals_of(rng, informative * right.astype(np.float64), difficulty[trace], step)
    answer = np.where(exact_match > 0, 0, 1 + rng.integers(0, 4, len(trace)))
    confidence = np.clip(
        0.55 + informative * 0.25 * right - 0.15 * difficulty[trace]
        + rng.normal(0, 0.13, len(trace)), 0.01, 0.999,
    )  # fmt: skip
    return TraceTable(
        trace_ids=np.array([f"t{i}" for i in range(n)], dtype=np.str_),
        question_ids=np.array([f"q{i}" for i in question], dtype=np.str_),
        offsets=offsets,
        thinking_tokens=thinking,
        exit_exact_match=exact_match,
        exit_answer_tokens=rng.integers(4, 9, len(trace)),
        probe_tokens=rng.integers(3, 6, len(trace)) if probes else np.zeros(len(trace), np.int64),
        probe_confidence=confidence if probes else np.full(len(trace), np.nan),
        probe_answer=answer if probes else np.full(len(trace), -1, dtype=np.int64),
        probe_hedged=np.zeros(len(trace), dtype=bool),
        signals=signals,
        final_exact_match=final_right.astype(np.float64),
        final_thinking_tokens=final_thinking,
        final_answer_tokens=rng.integers(3, 8, n),
    )


def signals_of(
    rng: np.random.Generator, right: Floats, difficulty: Floats, step: Ints
) -> dict[str, Floats]:
    """Every recorded signal, (m,) each: one hidden confidence seen through separate noise.

    ``p_end`` rises with ``step``.
    """

    def noise(scale: float) -> Floats:
        return rng.normal(0.0, scale, len(step))

    shared = right - 0.4 * difficulty + noise(0.5)
    entropy = np.exp(-0.6 - 0.7 * shared + noise(0.3))
    logprob = -np.exp(-1.0 - 0.6 * shared + noise(0.3))
    margin = np.exp(0.6 + 0.5 * shared + noise(0.3))
    p_end = 1 / (1 + np.exp(4.0 - 1.5 * shared - 0.05 * step + noise(0.6)))
    columns = {
        "logprob_mean": logprob,
        "logprob_min": logprob * np.exp(1.0 + np.abs(noise(0.3))),
        "entropy_mean": entropy,
        "entropy_max": entropy * np.exp(0.7 + np.abs(noise(0.3))),
        "entropy_last": entropy * np.exp(noise(0.8)),
        "margin_mean": margin,
        "margin_min": margin * np.exp(-1.0 - np.abs(noise(0.4))),
        "p_end_mean": p_end,
        "p_end_max": np.minimum(1.0, p_end * np.exp(np.abs(noise(0.5)))),
        "p_end_last": np.minimum(1.0, p_end * np.exp(noise(0.9))),
        "hedges": rng.poisson(0.25 + 0.3 * difficulty).astype(np.float64),
        "conclusions": rng.poisson(0.15 + 0.4 * np.clip(right, 0, None)).astype(np.float64),
        "topk_mean": -6.0 - entropy + noise(0.4),
        "end_gap_min": np.maximum(0.0, -np.log(p_end) + noise(0.8)),
    }
    return {name: columns[name] for name in SIGNALS}


def tabular_table(copies: int = 8) -> TraceTable:
    """Four kinds of traces, ``copies`` of each; the one signal names the kind.

    Four checkpoints, 10 tokens apart, the natural end at 50. Kind 0 is right from the first
    checkpoint on; kind 1 from the third, and loses it at the natural end; kind 2 is right at
    the natural end only; kind 3 is right in one copy of four at its first checkpoint and in
    three of four from the second on. What can be seen depends on the kind and the checkpoint
    alone, so the best policy stops each kind at one place: see ``tabular_stops``.
    """
    kind = np.repeat(np.arange(TABULAR_KINDS), copies)
    quarter = np.tile(np.arange(copies) % 4, TABULAR_KINDS)
    exits = np.zeros((len(kind), 4))
    exits[kind == 0] = 1
    exits[kind == 1, 2:] = 1
    exits[kind == 3, 0] = quarter[kind == 3] == 0
    exits[kind == 3, 1:] = (quarter[kind == 3] < 3)[:, None]
    final = np.where(kind == 3, quarter < 3, kind != 1).astype(np.float64)
    return _grid_table(exits, final, {"kind": np.repeat(kind, 4).astype(np.float64)})


def tabular_stops(table: TraceTable, token_price: float) -> Ints:
    """The best stop of each trace of a ``tabular_table``, (n,), -1 for the natural end.

    By trying all five stops of each kind on all its copies together.
    """
    n = len(table)
    kind = table.signals["kind"][table.offsets[:-1]]
    tokens = np.concatenate(
        [
            (table.thinking_tokens + table.exit_answer_tokens).reshape(n, 4),
            table.full_tokens[:, None],
        ],
        axis=1,
    )
    right = np.concatenate(
        [table.exit_exact_match.reshape(n, 4), table.final_exact_match[:, None]], axis=1
    )
    utility = right - token_price * tokens
    stops = np.empty(n, dtype=np.int64)
    for value in np.unique(kind):
        best = int(utility[kind == value].mean(axis=0).argmax())
        stops[kind == value] = -1 if best == 4 else best
    return stops


def never_stop_table(n: int = 64, seed: int = 0) -> TraceTable:
    """Only the natural end is ever right; the signals are noise. At every relative price up to
    1 the best policy never stops."""
    rng = np.random.default_rng(seed)
    return _grid_table(np.zeros((n, 4)), np.ones(n), {"noise": rng.normal(size=4 * n)})


def _grid_table(exits: Floats, final: Floats, signals: dict[str, Floats]) -> TraceTable:
    """Traces of equal length: checkpoints every 10 tokens, answers of 4 tokens."""
    n, length = exits.shape
    return TraceTable(
        trace_ids=np.array([f"t{i}" for i in range(n)], dtype=np.str_),
        question_ids=np.array([f"q{i}" for i in range(n)], dtype=np.str_),
        offsets=np.arange(n + 1, dtype=np.int64) * length,
        thinking_tokens=np.tile(10 * np.arange(1, length + 1), n),
        exit_exact_match=exits.ravel(),
        exit_answer_tokens=np.full(n * length, 4, dtype=np.int64),
        probe_tokens=np.zeros(n * length, dtype=np.int64),
        probe_confidence=np.full(n * length, np.nan),
        probe_answer=np.full(n * length, -1, dtype=np.int64),
        probe_hedged=np.zeros(n * length, dtype=bool),
        signals=signals,
        final_exact_match=final,
        final_thinking_tokens=np.full(n, 10 * (length + 1), dtype=np.int64),
        final_answer_tokens=np.full(n, 4, dtype=np.int64),
    )


def puzzle(k: int) -> Trace:
    """A trace of 12 checkpoints that is right from a hidden one on; a trial answer shows it.

    ``entropy_mean`` is low at every third checkpoint, and only there the answer may turn right.
    """
    rng = np.random.default_rng([7, k])
    right_from = 3 * int(rng.integers(1, 5)) - 1
    points = []
    for step in range(12):
        right = step >= right_from
        points.append(
            Checkpoint(
                thinking_tokens=10 * (step + 1),
                signals={"entropy_mean": float((step % 3 != 2) + 0.1 * rng.standard_normal())},
                probe=Probe(
                    "7" if right else str(rng.integers(100, 10**6)), 0.95 if right else 0.3, 4
                ),
                exit=Exit("7" if right else "0", int(right), 3),
            )
        )
    return Trace(
        trace_id=f"t{k}", question_id=f"q{k}", task="made-up", question="?", target="7",
        model="none", seed=k, meta={}, final=Final("7", 1, 130, 3), checkpoints=tuple(points),
    )  # fmt: skip
