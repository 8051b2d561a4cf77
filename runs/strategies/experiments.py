"""Experiments with continuous peeking: worse arms stopped, equal arms not, intervals that hold.

    python -m runs.strategies.experiments [--runs 1000]

Units are drawn as a gateway draws them, half into the arm and half into the control, and the
experiment's own bets are looked at after every unit, or after every 20 where that is said. An
audited unit loses its answer by the stop with a chance of 2% and gains one with 1%; in the worse
arm it loses with 5%: 3 points more, at a margin of 2. Tokens are skewed as those of thinking are.
Writes ``runs/results/experiments.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.strategies.experiments.betting import BETS
from rlbudget.strategies.experiments.design import Arm, Design
from rlbudget.strategies.experiments.results import difference_of
from runs.common import row, write_result

SEED = 0
SIZE = 50_000
MARGIN, WORSE = 0.02, 0.03
COARSE = 20
DESIGN = Design("simulated", (Arm("control"), Arm("arm")), margin=MARGIN, size=SIZE,
                most_tokens=8192, usual_tokens=700.0)  # fmt: skip
USUAL = ((-1.0, 0.02), (1.0, 0.01))
"""exact match less the full decode's: value, chance; else 0"""
CONTENT = ((1.0, 0.8),)
"""satisfaction"""


@dataclass(frozen=True)
class Metric:
    """Weighted differences of a metric: their values, chances and range."""

    values: Floats
    chances: Floats
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(self.values @ self.chances)


def metric(
    control: Sequence[tuple[float, float]], arm: Sequence[tuple[float, float]], *,
    low: float, high: float, usual: float,
) -> Metric:  # fmt: skip
    """Of two distributions (value, chance; what is left is 0)."""
    values, chances = [], []
    for inside, some in ((False, control), (True, arm)):
        rest = 1 - sum(chance for _, chance in some)
        for value, chance in (*some, (0.0, rest)):
            if chance > 0:
                values.append((inside, value))
                chances.append(chance / 2)
    shown = [difference_of([one], chance=0.5, low=low, high=high, usual=usual) for one in values]
    return Metric(
        np.array([one.values[0] for one in shown]), np.array(chances), shown[0].low, shown[0].high
    )  # fmt: skip


def tokens(scale: float) -> list[tuple[float, float]]:
    """Skewed as the tokens of thinking are: 24 equally likely sizes."""
    rng = np.random.default_rng(SEED)
    sizes = np.quantile(rng.lognormal(6.2, 0.8, 100_000), (np.arange(24) + 0.5) / 24) * scale
    return [(float(min(size, DESIGN.most_tokens)), 1 / 24) for size in sizes]


def fortunes(
    rng: np.random.Generator, of: Metric, means: Sequence[float], *, block: int
) -> list[tuple[Floats, Floats]]:
    """For each mean the log fortunes after every block: of bets on a higher one, on a lower one."""
    looks = SIZE // block
    seen = rng.multinomial(block, of.chances, size=looks).astype(np.float64)
    found = []
    for mean in means:
        shift = (of.values - mean) / (of.high - of.low)
        sides = []
        for sign in (1.0, -1.0):
            each = np.log1p(sign * BETS[None, :] * shift[:, None])
            total = np.cumsum(seen @ each, axis=0)
            most = total.max(axis=1)
            sides.append(most + np.log(np.exp(total - most[:, None]).mean(axis=1)))
        found.append((sides[0], sides[1]))
    return found


NEEDED = float(np.log(2 / (1 - DESIGN.each)))


def first(over: Floats, needed: float = NEEDED) -> int | None:
    """The first look at which a fortune is enough."""
    hits = np.flatnonzero(over >= needed)
    return int(hits[0]) if hits.size else None


def main() -> None:
    """Simulate, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    worse = (*((v, c + WORSE * (v < 0)) for v, c in USUAL),)
    match = {"equal": metric(USUAL, USUAL, low=-1, high=1, usual=0.0),
             "worse": metric(USUAL, worse, low=-1, high=1, usual=0.0)}  # fmt: skip
    content = metric(CONTENT, CONTENT, low=0, high=1, usual=0.5)
    spent = {
        scale: metric(tokens(1.0), tokens(scale), low=0, high=DESIGN.most_tokens,
                      usual=DESIGN.usual_tokens)
        for scale in (1.0, 0.7)
    }  # fmt: skip
    delays: list[int] = []
    false_stops = 0
    missed = {"exact match, equal arms": 0, "exact match, worse arm": 0, "satisfaction": 0,
              "tokens": 0, "any of an experiment of equal arms": 0}  # fmt: skip
    wins: list[int] = []
    for run in range(runs):
        rng = np.random.default_rng([SEED, run])
        (_, under), truth = fortunes(rng, match["worse"], (-MARGIN, -WORSE), block=COARSE)
        if (at := first(under)) is not None:
            delays.append((at + 1) * COARSE)
        missed["exact match, worse arm"] += first(np.maximum(*truth)) is not None
        (_, match_low), match_true = fortunes(rng, match["equal"], (-MARGIN, 0.0), block=1)
        (_, content_low), content_true = fortunes(
            rng, content, (-DESIGN.satisfaction_margin, 0.0), block=1
        )
        (spent_true,) = fortunes(rng, spent[1.0], (0.0,), block=1)
        false_stops += any(
            first(one) is not None for one in (match_low, content_low, spent_true[0])
        )
        outside = [first(np.maximum(*one)) is not None
                   for one in (match_true, content_true, spent_true)]  # fmt: skip
        for name, one in zip(("exact match, equal arms", "satisfaction", "tokens"), outside,
                             strict=True):  # fmt: skip
            missed[name] += one
        missed["any of an experiment of equal arms"] += any(outside)
        ((above, _),) = fortunes(rng, match["equal"], (-MARGIN,), block=COARSE)
        ((_, saved),) = fortunes(rng, spent[0.7], (0.0,), block=COARSE)
        both = np.minimum(above, saved)
        if (at := first(both)) is not None:
            wins.append((at + 1) * COARSE)
        if run % 100 == 99:
            print(f"{run + 1} of {runs}", file=sys.stderr, flush=True)
    write_result("experiments", rows_of(runs, delays, false_stops, missed, wins), seeds=[SEED],
                 reproduce="python -m runs.strategies.experiments")  # fmt: skip


def rows_of(
    runs: int, delays: Sequence[int], false_stops: int, missed: dict[str, int],
    wins: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    stopped, slack = len(delays) / runs, 2 * (0.05 * 0.95 / runs) ** 0.5
    covered = {name: 1 - count / runs for name, count in missed.items()}
    return [
        row(f"an arm that loses {100 * WORSE:g} points more than the control, margin"
            f" {100 * MARGIN:g}: stopped within the declared size of {SIZE:,} audited units,"
            f" {runs:,} experiments", ">= 90%",
            f"{stopped:.1%}, after {_median(delays):,} units in the median", stopped >= 0.9),
        row(f"equal arms, looked at after each of {SIZE:,} units: false stops for exact match,"
            " satisfaction or tokens", "<= 5%", f"{false_stops / runs:.1%}",
            false_stops <= 0.05 * runs),
        row("coverage at all times together of each interval (all of an experiment are to hold"
            f" with {DESIGN.confidence:.0%})", f">= {DESIGN.confidence - slack:.3f} (95% less 2"
            " standard errors)",
            "; ".join(f"{name} {share:.1%}" for name, share in covered.items()),
            min(covered.values()) >= DESIGN.confidence - slack),
        row("an arm that spends 30% fewer tokens and loses nothing: wins within the declared size",
            "stated", f"{len(wins) / runs:.1%}, after {_median(wins):,} units in the median"
            " (exact match is audited, tokens are of as many units)", len(wins) >= 0.9 * runs),
    ]  # fmt: skip


def _median(some: Sequence[int]) -> int:
    return int(np.median(some)) if some else 0


if __name__ == "__main__":
    main()
