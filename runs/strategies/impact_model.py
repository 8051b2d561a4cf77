"""The impact model on held-out questions: is its risk calibrated, and how good is it as a guard?

    python -m runs.strategies.impact_model [--traces FOLDER] [--n 3600]

Fitted on training questions and calibrated on validation questions, on the free observation with
the question's own numbers. The guard stands before a free PPO policy at every relative price.
Where there are kept traces of the SmolLM2 reasoner, they are measured as well. Writes
``runs/results/impact_model.json`` and the reliability diagram beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.evaluate.reliability import Reliability, reliability
from rlbudget.evaluate.verdicts import paired
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import NATURAL_END, RELATIVE_PRICES, outcome, token_price_of
from rlbudget.policy.replay import replay
from rlbudget.strategies.impact import fit_impact, guarded, lost_by_stopping
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import split_questions
from runs.common import RESULTS, parser_of, row, sources, write_result

SEEDS = (0, 1, 2)
MAX_RISK = 0.01


def main() -> None:
    """Fit, measure, draw, write."""
    args = parser_of(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    shown: dict[str, Reliability] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, traces in sources(args, scratch).items():
            found, details[name], shown[name] = measured(name, traces, scratch)
            rows += found
    draw(shown)
    write_result(
        "impact_model",
        rows,
        reproduce="python -m runs.strategies.impact_model",
        seeds=list(SEEDS),
        **details,
    )


def measured(
    name: str, traces: Path, scratch: Path
) -> tuple[list[dict[str, Any]], dict[str, Any], Reliability]:
    """Rows and details of one recording, and the reliability of the first seed."""
    table = load_table(traces, context=True)
    split = split_questions(table, seed=0)
    held_out = split.held_out
    features = feature_names(table.signals, "free", context=True)
    lost, seen = lost_by_stopping(held_out), observe(held_out, features)
    full = outcome(held_out, np.full(len(held_out), NATURAL_END))
    reliabilities, losses, kept, highest = [], [], [], []
    for seed in SEEDS:
        impact = fit_impact(split.train, split.validation, features, seed=seed)
        reliabilities.append(reliability(impact.risk(seen), lost))
        run = scratch / f"{name}-{seed}"
        train_on(traces, run, context=True, seed=seed)
        policy = policy_of_run(run)
        for relative in RELATIVE_PRICES:
            price = token_price_of(relative, split.train)
            done = replay(guarded(policy, impact, max_risk=MAX_RISK), held_out, price, seen)
            difference = full.exact_match - done.outcome.exact_match
            losses.append(float(difference.mean()))
            highest.append(paired(difference, held_out.question_ids, most=1.0).interval[1])
            kept.append(float(1 - done.outcome.tokens.sum() / full.tokens.sum()))
    ece = float(np.mean([found.ece for found in reliabilities]))
    base = float(lost.mean())
    rows = [
        row(f"{name}: expected calibration error of the impact model, mean of {len(SEEDS)} seeds",
            "<= 0.03", f"{ece:.4f}", ece <= 0.03),
        row(f"{name}: EM lost under the guard at r = 1%, the worst of {len(losses)} prices and"
            " seeds",
            f"<= {MAX_RISK:g}, with the whole 95% interval",
            f"{max(losses):.4f}, at most {max(highest):.4f} (mean {np.mean(losses):.4f}, saving"
            f" {np.mean(kept):.1%})",
            max(highest) <= MAX_RISK),
    ]  # fmt: skip
    details = {
        "traces_digest": digest(traces),
        "held_out_questions": len(np.unique(held_out.question_ids)),
        "checkpoints_that_lose_an_answer": base,
        "brier": float(np.mean([found.brier for found in reliabilities])),
        "brier_of_the_base_rate": base * (1 - base),
        "ece": [found.ece for found in reliabilities],
        "guard": {"max_risk": MAX_RISK, "losses": losses, "savings": kept},
    }
    return rows, details, reliabilities[0]


def draw(shown: dict[str, Reliability]) -> None:
    """The reliability diagram: how often an answer was lost against how often it was said."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(shown), figsize=(4.2 * len(shown), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (name, found) in zip(axes[0], shown.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=1)
        size = 12 + 240 * found.count / found.count.max()
        axis.scatter(found.predicted, found.observed, s=size, color="#2a6fbb", zorder=2)
        axis.set(
            title=f"{name}, ECE {found.ece:.3f}",
            xlabel="risk said",
            ylabel="share of answers lost",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axis.set_aspect("equal")
    figure.savefig(RESULTS / "impact_model.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
