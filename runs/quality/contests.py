"""Contests of a challenger with the served policy: how often a worse one is promoted, a good one.

    python -m runs.quality.contests [--runs 1000]

The served policy never stops, the challenger stops every decode at once: it saves some of 20 tokens
and loses the answers of a share of the questions. Each run draws fresh questions. Beside the
contest's verdict stands that of a plain paired bootstrap (2,000 draws of the questions, the
central 95%), which ``retrain`` used before, on the same questions. Writes
``runs/results/contests.json``; takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import resample
from rlbudget.policy.folder import Policy, make_policy
from rlbudget.policy.outcomes import RELATIVE_PRICES
from rlbudget.strategies.feedback.retrain import contest
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace
from runs.common import write_result

SEED = 0
MARGIN = 0.005
MOST = 0.05
TOKENS = 20
FEW = (2, 3, 5, 8, 10, 15, 20)
MANY = (500, 2000)
MANY_RUNS = 300
DRAWS = 2000
RELATIVE_PRICE = float(np.mean(RELATIVE_PRICES))


@dataclass(frozen=True, slots=True)
class Challenger:
    """What stopping at once does, and how it should fare."""

    name: str
    saved: int
    """of ``TOKENS``"""
    lost: float
    """share of the questions whose answer is lost"""

    @property
    def difference(self) -> float:
        """Mean utility over the relative prices, less that of never stopping."""
        return RELATIVE_PRICE * self.saved / TOKENS - self.lost


def worse_by(difference: float, saved: int) -> Challenger:
    """One that is worse by this much."""
    lost = difference + RELATIVE_PRICE * saved / TOKENS
    return Challenger(f"that is worse by {difference:g}", saved, lost)


WORSE = worse_by(0.026, 1)
ELSE_WORSE = worse_by(0.026, 10)
AT_THE_MARGIN = worse_by(MARGIN, 1)
GOOD = (
    Challenger("of equal utility", 1, RELATIVE_PRICE / TOKENS),
    Challenger("that is better by 0.01", 1, 0.0),
    Challenger("that is better by 0.029", 4, 0.01),
    Challenger("that is better by 0.078", 10, 0.02),
)
WANTED_POWER = 0.8


@dataclass(frozen=True, slots=True)
class Promoted:
    """Which runs promoted: (runs,) 0 or 1."""

    contest: Floats
    bootstrap: Floats

    def shares(self) -> dict[str, float]:
        """Of the runs."""
        return {"contest": self.contest.mean(), "bootstrap": self.bootstrap.mean()}

    def __str__(self) -> str:
        return f"{self.contest.mean():.1%} (plain bootstrap {self.bootstrap.mean():.1%})"

    def ends(self) -> tuple[float, float]:
        """95% interval of the contest's share."""
        runs = np.array([str(k) for k in range(len(self.contest))])
        return mean_interval(
            resample(runs, draws=DRAWS, seed=SEED), self.contest, low=0.0, high=1.0
        )


def main() -> None:
    """Hold the contests, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="of each row of few questions")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    for challenger, n, runs in plan(args.runs):
        found = held(challenger, n, runs)
        shares.append(
            {
                "saved_tokens": challenger.saved, "of_tokens": TOKENS, "lost": challenger.lost,
                "difference": challenger.difference, "questions": n, "runs": runs,
                "promoted": found.shares(),
            }
        )  # fmt: skip
        if challenger is not ELSE_WORSE:
            rows.append(row(challenger, n, runs, found))
        print(challenger.name, challenger.saved, n, found, file=sys.stderr, flush=True)
    write_result(
        "contests", rows, reproduce="python -m runs.quality.contests", seeds=[SEED], margin=MARGIN,
        relative_prices=list(RELATIVE_PRICES), promoted=shares,
    )  # fmt: skip


def plan(runs: int) -> Iterator[tuple[Challenger, int, int]]:
    """Every challenger, number of questions and number of runs."""
    yield from ((WORSE, n, runs) for n in FEW)
    yield from ((ELSE_WORSE, n, runs) for n in FEW)
    for challenger in (AT_THE_MARGIN, *GOOD):
        yield from ((challenger, n, min(runs, MANY_RUNS)) for n in MANY)


def row(challenger: Challenger, n: int, runs: int, found: Promoted) -> dict[str, Any]:
    """One row; a share whose interval holds what is wanted cannot tell, and is not met."""
    worse = challenger.difference < -1e-9
    low, high = found.ends()
    return {
        "row": f"contests on {n:,} held-out questions of a challenger {challenger.name}"
        + f" (saves {challenger.saved} of {TOKENS} tokens, loses {challenger.lost:.1%} of the"
        f" answers), margin {MARGIN:g}, {runs:,} runs: promoted",
        "wanted": f"<= {MOST:.0%}" if worse else f">= {WANTED_POWER:.0%}",
        "reached": str(found),
        "met": bool(high <= MOST if worse else low >= WANTED_POWER),
    }


def held(challenger: Challenger, n: int, runs: int) -> Promoted:
    """The contests of some runs, and what a plain bootstrap says of the same questions."""
    rng = np.random.default_rng([SEED, n, challenger.saved, round(1e6 * challenger.lost)])
    table = questions(n, challenger.saved)
    stops, never = constant(20.0), constant(-20.0)
    drawn = np.random.default_rng(SEED).integers(0, n, (DRAWS, n))
    counts = np.stack([np.bincount(draw, minlength=n) for draw in drawn]).astype(np.float64)
    promoted, plain = [], []
    for run in range(runs):
        right = (rng.random(n) >= challenger.lost).astype(np.float64)
        found = contest(
            stops, never, replace(table, exit_exact_match=right), margin=MARGIN, seed=run
        )
        promoted.append(float(found.promotes))
        difference = right - 1 + RELATIVE_PRICE * challenger.saved / TOKENS
        assert abs(difference.mean() - found.difference) < 1e-9
        plain.append(float(np.quantile(counts @ difference / n, 0.025) > -MARGIN))
    return Promoted(np.array(promoted), np.array(plain))


def questions(n: int, saved: int) -> TraceTable:
    """One decode each, right at its end, with one checkpoint."""
    traces = [
        Trace(
            trace_id=f"t{k}", question_id=f"q{k:05d}", task="contests", question="?", target="1",
            model="none", seed=0,
            final=Final("1", 1, thinking_tokens=TOKENS - 4, answer_tokens=4),
            checkpoints=(
                Checkpoint(1, {}, exit=Exit("1", 1, TOKENS - saved - 1)),
            ),
        )
        for k in range(n)
    ]  # fmt: skip
    return table_of(traces)


def constant(logit: float) -> Policy:
    """A policy that always gives STOP this logit."""
    return make_policy(
        {
            "obs_mean": np.zeros(1, dtype=np.float32),
            "obs_std": np.ones(1, dtype=np.float32),
            "action_net.weight": np.zeros((2, 2), dtype=np.float32),
            "action_net.bias": np.array([0.0, logit], dtype=np.float32),
        },
        features=("thinking_tokens",),
        preset="free",
        price_range=(1e-4, 1e-1),
    )


if __name__ == "__main__":
    main()
