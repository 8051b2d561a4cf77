"""Measure what a policy is worth: three seeds of PPO, exact and sampled, held-out questions.

    python -m runs.quality.policy_quality [--traces FOLDER] [--n 3600]

Records the embedded model (or takes a recorded folder), trains each seed on the training
questions, keeps the best by validation, and measures on the held-out ones. Writes
``runs/results/policy_quality.json`` and the learning curves beside it as ``advantages.svg``.

- *every fixed budget*: each budget of the grid at every price, and the best one for each price
  by the training questions; the margin reported is the one over the strongest of them.
- *savings*: of the operating point that saves most on the validation questions while it loses
  at most a point there, mean of the seeds; met only if the held-out loss is at most a point too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlbudget.agents.curves import NAMES
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.rules import RULES, Rule
from rlbudget.agents.training import train_on
from rlbudget.evaluate.evaluation import Assessment, as_json, assess, compared
from rlbudget.policy.outcomes import budget_grid, fixed_stops
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import TraceTable, split_questions, without
from runs.common import RESULTS, parser_of, recorded, write_result
from runs.quality import optimum

SEEDS = (0, 1, 2)
ADVANTAGES: tuple[Literal["exact", "sampled"], ...] = ("exact", "sampled")


def main() -> None:
    """Record, train, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of recording, split and bootstrap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        traces = recorded(args.traces, Path(scratch), args.n, args.seed)
        measure(traces, Path(scratch), args.seed)


def measure(traces: Path, scratch: Path, seed: int) -> None:
    """Train every seed both ways on a folder of traces and write the result."""
    table = load_table(traces)
    split = split_questions(table, seed=seed)
    held_out = split.held_out
    train = without(table, held_out)
    policies, curves = {}, {}
    for advantages in ADVANTAGES:
        for agent in SEEDS:
            name = f"ppo-{advantages}-{agent}"
            run = scratch / name
            train_on(traces, run, advantages=advantages, seed=agent, split_seed=seed)
            policies[name] = policy_of_run(run)
            curves[name] = curve(run)
            print(name, f"{curves[name][-1][1]:.3f} of the gap on validation", flush=True)
    assessment = assess(
        train,
        held_out,
        policies,
        rules=(*RULES, *budget_rules(train)),
        validation=split.validation,
        seed=seed,
    )
    figure = RESULTS / "advantages.svg"
    draw(curves, figure)
    rows, details = rows_of(assessment)
    optima = optimum.measure(lambda line: print(line, flush=True))
    details["optima_found_by_seeds"] = optima.pop("details")
    write_result(
        "policy_quality", [optima, *rows],
        reproduce="python -m runs.quality.policy_quality",
        seeds=list(SEEDS), recording_seed=seed, traces_digest=digest(traces),
        figure=figure.name, **details,
    )  # fmt: skip


def budget_rules(train: TraceTable) -> list[Rule]:
    """Each budget of the grid as a method of its own, the same budget at every price."""

    def constant(budget: float) -> Rule:
        return Rule(
            name=f"budget-{budget:g}",
            needs=(),
            grid=lambda table: [{"budget": budget}],
            stops=lambda table, parameters: fixed_stops(table, parameters["budget"]),
        )

    return [constant(budget) for budget in budget_grid(train) if np.isfinite(budget)]


def rows_of(assessment: Assessment) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the requirement, and numbers beside them."""
    summary = {row["method"]: row for row in as_json(assessment)["summary"]}
    gap = {name: row["mean_oracle_gap_closed"] for name, row in summary.items()}
    agents = {a: [f"ppo-{a}-{seed}" for seed in SEEDS] for a in ADVANTAGES}
    exact = agents["exact"]
    mean = {a: float(np.mean([gap[name] for name in names])) for a, names in agents.items()}
    budgets = ["fixed", *(name for name in gap if name.startswith("budget-"))]
    margins = {name: compared(assessment, exact, [name]) for name in budgets}
    strongest = min(margins, key=lambda name: margins[name].difference)
    rules = {name: gap[name] for name in ("confidence", "streak")}
    beats = {name: compared(assessment, exact, [name]) for name in rules}
    savings = [summary[name]["savings_at_em_loss"]["0.01"] for name in exact]
    losses = [summary[name]["held_out_em_loss"]["0.01"] for name in exact]
    questions = len(np.unique(assessment.question_ids))
    saved, lost = float(np.mean(savings)), float(np.mean(losses))
    rows = [
        {
            "row": "mean oracle gap closed, PPO over every fixed budget, mean of 3 seeds",
            "wanted": "margin > 0 with a 95% interval that excludes 0, >= 500 held-out questions",
            "reached": f"{mean['exact']:.3f}; over {strongest} by {margins[strongest]},"
            f" {questions} questions",
            "met": questions >= 500 and all(one.verdict == "better" for one in margins.values()),
        },
        *(
            {
                "row": f"mean oracle gap closed, PPO against {name}",
                "wanted": f">= {value:.3f}, 95% interval of the margin above 0",
                "reached": f"{mean['exact']:.3f}; margin {beats[name]}",
                "met": beats[name].verdict == "better",
            }
            for name, value in rules.items()
        ),
        {
            "row": "savings at <= 1 point of EM loss, all tokens, mean of 3 seeds",
            "wanted": ">= 30% of the tokens, <= 1.0 point lost on the held-out questions",
            "reached": f"{saved:.1%} saved, {100 * lost:.1f} points lost",
            "met": saved >= 0.3 and lost <= 0.01,
        },
    ]
    details = {
        "mean_oracle_gap_closed": {
            "ppo, exact advantages": mean["exact"], "ppo, sampled advantages": mean["sampled"],
            **{name: value for name, value in gap.items() if not name.startswith("budget-")},
        },
        "savings_at_em_loss_0.01": {
            name: {"saved": row["savings_at_em_loss"]["0.01"],
                   "held_out_em_loss": row["held_out_em_loss"]["0.01"]}
            for name, row in summary.items() if not name.startswith("budget-")
        },
        "strongest_fixed_budget": strongest,
    }  # fmt: skip
    return rows, details


def curve(run: Path) -> list[tuple[int, float]]:
    """(environment steps, mean oracle gap closed on validation) of a run, from TensorBoard."""
    (folder,) = {file.parent for file in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    name = NAMES["oracle_gap_closed"]
    return [(event.step, event.value) for event in events.Scalars(name)]


def draw(curves: dict[str, list[tuple[int, float]]], file: Path) -> None:
    """Every learning curve; one colour for each kind of advantages."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for advantages, colour in zip(ADVANTAGES, ("#0969da", "#bc4c00"), strict=True):
        lines = [np.array(curves[f"ppo-{advantages}-{seed}"]) for seed in SEEDS]
        for line in lines:
            axes.plot(line[:, 0], line[:, 1], color=colour, alpha=0.35, linewidth=1)
        length = min(map(len, lines))
        middle = np.mean([line[:length] for line in lines], axis=0)
        axes.plot(middle[:, 0], middle[:, 1], color=colour, linewidth=2.2, label=advantages)
    axes.axhline(0, color="#57606a", linewidth=0.8, linestyle="--")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("oracle gap closed")
    axes.set_title("PPO on validation questions, by how advantages are computed", loc="left")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="advantages", loc="lower right")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
