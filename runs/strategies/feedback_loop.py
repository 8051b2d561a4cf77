"""The feedback loop and the stream evaluator: what retraining earns, and whether intervals hold.

    python -m runs.strategies.feedback_loop [--traces FOLDER] [--n 3600]

*Retraining*: a policy trained on 400 questions is served; a registry trains it on with 2,400 others
and holds its contest on questions that neither has seen. *Stream*: requests drawn from the held-out
questions of the served policy, each audited with a chance of a half; how often the confidence
sequence misses the true loss at any time, and how soon a loss that rises halfway is noticed.
Writes ``runs/results/feedback_loop.json``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import NATURAL_END, Outcome, outcome, token_price_of
from rlbudget.policy.replay import replay
from rlbudget.strategies.feedback.audit import Audit, PageHinkley, StreamEvaluator, audited
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import Retrained, retrain
from rlbudget.traces.store import TraceWriter, digest, iter_traces, load_table
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace
from runs.common import parser_of, recorded, row, write_result

SEEDS = (0, 1, 2)
FIRST, NEW = 400, 2400
STREAMS, REQUESTS, SHARE = 400, 1000, 0.5
CONFIDENCE = 0.95
MOST_BIAS = 0.002
RELATIVE_PRICE, BLIND = 0.05, (0.2, 1.0)
"""of the streams; and the share of the requests that are stopped at once after the change: a small
fault, which is told but not asked for, and a policy that is broken"""


def main() -> None:
    """Retrain, stream, write."""
    args = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        traces = recorded(args.traces, scratch, args.n)
        every = list(iter_traces(traces))
        first, new = every[:FIRST], every[FIRST : FIRST + NEW]
        unseen = written(scratch / "unseen", every[FIRST + NEW :])
        done, policy = [], None
        for seed in SEEDS:
            begun = written(scratch / f"first-{seed}", first)
            policy = served(begun, scratch / f"run-{seed}", seed)
            done.append(loop(policy, written(scratch / f"new-{seed}", new), scratch, seed))
            print(f"seed {seed}", file=sys.stderr, flush=True)
        assert policy is not None
        rows = [retraining(done), *stream_rows(policy, load_table(unseen))]
        write_result(
            "feedback_loop", rows, reproduce="bash runs/strategies/strategies.sh",
            seeds=list(SEEDS), traces_digest=digest(traces),
        )  # fmt: skip


def written(folder: Path, traces: Sequence[Trace]) -> Path:
    """A folder of these traces."""
    with TraceWriter(folder) as writer:
        for trace in traces:
            writer.add(trace)
    return folder


def served(traces: Path, run: Path, seed: int) -> Policy:
    """A policy trained on few questions, for the usual prices."""
    train_on(traces, run, seed=seed)
    return policy_of_run(run)


def loop(policy: Policy, traces: Path, scratch: Path, seed: int) -> Retrained:
    """One turn of the feedback loop in a registry of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        registry = Registry(Path(folder) / "registry")
        registry.promote(registry.add(policy))
        return retrain(registry, traces, seed=seed)


def retraining(done: Sequence[Retrained]) -> dict[str, Any]:
    """What the loop earned."""
    promoted = sum(one.promoted for one in done)
    return row(
        f"feedback loop: utility of the policy trained on with {NEW} new questions, less that"
        f" of the served one ({FIRST} questions), held out, mean over the prices, each seed",
        "better in each, with the whole 95% interval",
        ", ".join(str(one.contest) for one in done) + f"; promoted {promoted} of {len(done)}",
        all(one.contest.verdict == "better" for one in done),
    )


def audits_of(full: Outcome, stopped: Outcome) -> list[Audit]:
    """What an audit of each request would say."""
    return [
        Audit(float(a), float(b), int(c), int(d))
        for a, b, c, d in zip(
            full.exact_match, stopped.exact_match, full.tokens, stopped.tokens, strict=True
        )
    ]


def stream_rows(policy: Policy, table: TraceTable) -> list[dict[str, Any]]:
    """Coverage at all times, and the delay of the alarm."""
    full = outcome(table, np.full(len(table), NATURAL_END))
    stopped = replay(policy, table, token_price_of(RELATIVE_PRICE, table)).outcome
    before = audits_of(full, stopped)
    blind = audits_of(full, outcome(table, np.where(table.lengths > 0, 0, NATURAL_END)))
    loss = float(np.mean([one.loss for one in before]))
    missed, widths, estimates, false_alarms = 0, [], [], 0
    for stream in range(STREAMS):
        evaluator, outside = StreamEvaluator(confidence=CONFIDENCE), False
        for audit, _ in requests(stream, before, before):
            false_alarms += evaluator.add(audit)
            low, high = evaluator.report.loss_interval
            outside |= not low <= loss <= high
        missed += outside
        low, high = evaluator.report.loss_interval
        widths.append(high - low)
        estimates.append(evaluator.report.loss)
    share, most = missed / STREAMS, 0.05 + 2 * (0.05 * 0.95 / STREAMS) ** 0.5
    bias = float(np.mean(estimates) - loss)
    spread = float(np.std(estimates, ddof=1) / STREAMS**0.5)
    chance = np.random.default_rng(0).random(len(table))
    told = []
    for blinded in BLIND:
        after = [b if c < blinded else a for a, b, c in zip(before, blind, chance, strict=True)]
        delays = np.array([delay_of(stream, before, after) for stream in range(STREAMS)])
        noticed = float(np.mean(delays <= REQUESTS // 2))
        told.append(f"to {np.mean([one.loss for one in after]):+.3f}: {noticed:.1%}, median"
                    f" {np.median(delays):.0f} requests later")  # fmt: skip
    return [
        row(f"stream evaluator: {STREAMS} streams of {REQUESTS} requests, half audited: share in"
            " which the 95% interval of the loss misses the true one at any time",
            f"<= {most:.3f} (0.05 + 2 standard errors)",
            f"{share:.3f} (mean width at the end {np.mean(widths):.3f})", share <= most),
        row("stream evaluator: bias of the audited loss",
            f"within 2 standard errors of 0, and shown to be below {MOST_BIAS:g}",
            f"{bias:+.5f} (standard error {spread:.5f})",
            abs(bias) <= 2 * spread and abs(bias) + 2 * spread <= MOST_BIAS),
        row("stream evaluator: a policy that breaks halfway and stops at once is noticed (loss"
            f" before {loss:+.3f})", ">= 95% of the streams; false alarms in <= 5% of calm ones",
            f"loss {told[-1]}; false alarms {false_alarms / STREAMS:.1%} (a small fault, loss"
            f" {told[0]})",
            noticed >= 0.95 and false_alarms <= 0.05 * STREAMS),
    ]  # fmt: skip


def requests(
    stream: int, before: Sequence[Audit], after: Sequence[Audit]
) -> Iterator[tuple[Audit, int]]:
    """The audited requests of a stream, ``after`` from its middle on, and their places in it."""
    rng = np.random.default_rng(stream)
    for place in range(REQUESTS):
        which = int(rng.integers(len(before)))
        if audited(f"{stream}-{place}", SHARE):
            yield (after if place >= REQUESTS // 2 else before)[which], place


def delay_of(stream: int, before: Sequence[Audit], after: Sequence[Audit]) -> int:
    """Requests from the change to the first alarm after it; ``REQUESTS`` for none."""
    evaluator = PageHinkley()
    for audit, place in requests(stream, before, after):
        if evaluator.add(audit.loss) and place >= REQUESTS // 2:
            return place - REQUESTS // 2 + 1
    return REQUESTS


if __name__ == "__main__":
    main()
