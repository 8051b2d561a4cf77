"""Does the bound of ``rlbudget calibrate`` hold as often as it says?

    python -m runs.quality.risk_bound [--traces FOLDER]

Trains one policy on traces of the embedded model. Its held-out questions are a population whose
loss under every price is known. From it 1,000 calibration sets are drawn; each certifies a
price. A violation is a certified price whose loss on the population is above the bound. The same
with the population cut in two, calibration and test, and the loss taken on the test half (a
noisy yardstick: half of the questions have a test loss above their own mean).

Beside it the fixed rule of thumb "tune on the calibration questions, no test", and
Hoeffding-Bentkus, the p-value of the MAPIE package, at the same confidence.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.arrays import Floats
from rlbudget.evaluate.risk import certify, losses_of
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.prices import price_grid
from rlbudget.policy.replay import replay
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable, split_questions
from runs.common import parser_of, recorded, write_result

SPLITS = 1000
SETTINGS = ((0.01, 0.9), (0.02, 0.9), (0.02, 0.95), (0.05, 0.9))
PRICES = 40


def main() -> None:
    """Record, train, draw, write."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        traces = recorded(args.traces, Path(scratch), args.n)
        run = Path(scratch) / "run"
        train_on(traces, run, seed=0, split_seed=0)
        policy = policy_of_run(run)
        held_out = split_questions(load_table(traces), seed=0).held_out
    rows, details = measure(policy, held_out)
    write_result("risk_bound", rows, seed=0, splits=SPLITS, questions=len(held_out), **details)


def measure(policy: Policy, table: TraceTable) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Violation rates of every bound, both losses."""
    full = outcome(table, full_stops(table))
    seen = observe(table, policy.features)
    prices = price_grid(policy.price_range, PRICES)
    stopped = [replay(policy, table, float(p), seen).outcome for p in prices]
    tokens = np.array([result.tokens.mean() for result in stopped])
    rows, details = [], []
    for mode in ("loss", "harm"):
        losses = np.stack([losses_of(table, full, result, mode) for result in stopped])
        for bound, confidence in SETTINGS:
            found = violations(losses, bound, confidence, mode)
            delta = 1 - confidence
            limit = delta + 2 * math.sqrt(delta * confidence / SPLITS)
            rows.append(
                {
                    "row": f"violation rate, {mode} <= {bound:g}, confidence {confidence:g}",
                    "wanted": f"<= {limit:.3f} ({delta:g} + 2 standard errors)",
                    "reached": f"{found['population']:.3f} (test half: {found['test_half']:.3f})",
                    "met": bool(found["population"] <= limit),
                }
            )
            savings = 1 - tokens / full.tokens.mean()
            details.append(
                {
                    "mode": mode, "max_em_loss": bound, "confidence": confidence,
                    "violations": {k: found[k] for k in ("population", "test_half", "untested",
                                                         "hoeffding_bentkus")},
                    "certified_share": found["certified_share"],
                    "mean_savings_certified": mean_of(savings, found["chosen"]),
                    "mean_savings_hoeffding_bentkus": mean_of(savings, found["hb_chosen"]),
                }
            )  # fmt: skip
    return rows, {"bounds": details, "prices": PRICES}


def mean_of(savings: Floats, chosen: list[int | None]) -> float:
    """Mean savings; nothing certified saves nothing."""
    return float(np.mean([0.0 if k is None else savings[k] for k in chosen]))


def violations(losses: Floats, bound: float, confidence: float, mode: Any) -> dict[str, Any]:
    """Rates over the calibration sets; ``losses`` (prices, questions)."""
    n = losses.shape[1]
    truth = losses.mean(axis=1)
    rng = np.random.default_rng(7)
    counts = dict.fromkeys(("population", "test_half", "untested", "hoeffding_bentkus"), 0)
    chosen: list[int | None] = []
    hb_chosen: list[int | None] = []
    for _ in range(SPLITS):
        drawn = losses[:, rng.integers(0, n, n)]
        place = certify(list(drawn), max_em_loss=bound, confidence=confidence, mode=mode).certified
        chosen.append(place)
        counts["population"] += place is not None and truth[place] > bound
        tuned = last_below(drawn.mean(axis=1), bound)
        counts["untested"] += tuned is not None and truth[tuned] > bound
        hb = walk((hoeffding_bentkus(row, bound) for row in drawn), 1 - confidence)
        hb_chosen.append(hb)
        counts["hoeffding_bentkus"] += hb is not None and truth[hb] > bound
        order = rng.permutation(n)
        half, test = losses[:, order[: n // 2]], losses[:, order[n // 2 :]]
        place = certify(list(half), max_em_loss=bound, confidence=confidence, mode=mode).certified
        counts["test_half"] += place is not None and test[place].mean() > bound
    return {
        **{name: count / SPLITS for name, count in counts.items()},
        "certified_share": float(np.mean([k is not None for k in chosen])),
        "chosen": chosen,
        "hb_chosen": hb_chosen,
    }


def last_below(means: Floats, bound: float) -> int | None:
    """The boldest setting before the first whose mean loss is above the bound."""
    return walk((0.0 if mean <= bound else 1.0 for mean in means), 0.5)


def walk(p_values: Iterable[float], alpha: float) -> int | None:
    """The last setting rejected before the first that is not."""
    passed = 0
    for p in p_values:
        if p > alpha:
            break
        passed += 1
    return passed - 1 if passed else None


def hoeffding_bentkus(loss: Floats, bound: float) -> float:
    """The p-value of Bates et al., 2021 (https://arxiv.org/abs/2101.02703) on (loss + 1) / 2."""
    n, mean, limit = len(loss), float(loss.mean() + 1) / 2, (bound + 1) / 2
    if mean >= limit:
        return 1.0
    divergence = (mean * math.log(mean / limit) if mean > 0 else 0.0) + (1 - mean) * math.log(
        (1 - mean) / (1 - limit)
    )
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean), n, limit))
    return min(1.0, math.exp(-n * divergence), bentkus)


if __name__ == "__main__":
    main()
