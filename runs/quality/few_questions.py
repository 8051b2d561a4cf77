"""How many recorded questions a learner needs: 60, 250 and 1,000 to train on, the same held out.

    python -m runs.quality.few_questions [--traces FOLDER] [--n 3600] [--seeds 3]

A fifth of the questions of a size is for validation, the rest for training. Writes
``runs/results/few_questions.json`` and the plot beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.agents.rules import RULES
from rlbudget.evaluate.evaluation import as_json, assess
from rlbudget.evaluate.learners import fit_learners
from rlbudget.policy.observation import Preset
from rlbudget.traces.store import load_table
from rlbudget.traces.table import Split, TraceTable, split_questions, without
from runs.common import RESULTS, parser_of, recorded, write_result

SIZES = (60, 250, 1000)
PRESETS: tuple[Preset, ...] = ("free", "probe")
COLOURS = {"ppo": "#0969da", "exact-pg": "#8250df", "fitted-q": "#bc4c00", "logistic": "#1a7f37",
           "best rule": "#57606a"}  # fmt: skip


def main() -> None:
    """Record, train, measure, draw, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="subsets and seeds of each size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        table = load_table(recorded(args.traces, scratch, args.n))
        held_out = split_questions(table, seed=0).held_out
        pool = without(table, held_out)
        gaps: dict[str, dict[int, list[float]]] = {}
        for size in SIZES:
            for seed in range(args.seeds):
                for name, gap in measure(pool, held_out, size, seed, scratch).items():
                    gaps.setdefault(name, {}).setdefault(size, []).append(gap)
                print(size, seed, {n: round(g[size][-1], 3) for n, g in gaps.items()}, flush=True)
    means = {n: {s: float(np.mean(v)) for s, v in of.items()} for n, of in gaps.items()}
    draw(means, RESULTS / "few_questions.svg")
    rows = []
    for preset in PRESETS:
        end = "" if preset == "free" else "-probe"
        for size in SIZES:
            own = means[f"ppo{end}"][size]
            other = max(means[f"{name}{end}"][size] for name in ("fitted-q", "exact-pg"))
            rows.append(
                {
                    "row": f"{preset}: mean oracle gap closed by PPO, {size} questions",
                    "wanted": f">= {other - 0.01:.3f} (the better of fitted-Q and exact gradient"
                    " - 0.01)",
                    "reached": f"{own:.3f}",
                    "met": bool(own >= other - 0.01),
                }
            )
    write_result(
        "few_questions", rows, seeds=list(range(args.seeds)), sizes=list(SIZES),
        held_out_questions=len(np.unique(held_out.question_ids)),
        mean_oracle_gap_closed={n: {str(s): v for s, v in of.items()} for n, of in means.items()},
        figure="few_questions.svg",
    )  # fmt: skip


def subset(pool: TraceTable, size: int, seed: int) -> tuple[TraceTable, TraceTable]:
    """(training, validation) traces of ``size`` questions drawn by ``seed``."""
    questions = np.random.default_rng(seed).permutation(np.unique(pool.question_ids))[:size]
    validation = questions[: size // 5]
    return (
        pool.take(np.flatnonzero(np.isin(pool.question_ids, questions[size // 5 :]))),
        pool.take(np.flatnonzero(np.isin(pool.question_ids, validation))),
    )


def measure(
    pool: TraceTable, held_out: TraceTable, size: int, seed: int, scratch: Path
) -> dict[str, float]:
    """Mean oracle gap closed on the held-out traces of every learner and of the best rule."""
    train_set, validation = subset(pool, size, seed)
    both = pool.take(
        np.flatnonzero(
            np.isin(
                pool.question_ids,
                np.concatenate([train_set.question_ids, validation.question_ids]),
            )
        )
    )
    policies = {}
    for preset in PRESETS:
        run = scratch / f"{size}-{seed}-{preset}"
        train(train_set, validation, PPOConfig(preset=preset, seed=seed), run)
        policies["ppo" if preset == "free" else "ppo-probe"] = policy_of_run(run)
    learners = fit_learners(Split(train_set, validation, held_out), PRESETS, seed=seed)
    assessment = assess(
        both,
        held_out,
        policies,
        rules=[*RULES, logistic_rule(both)],
        learners=learners,
        validation=validation,
        draws=2,
    )
    gap = {r["method"]: r for r in as_json(assessment)["summary"]}
    value = {name: row["mean_oracle_gap_closed"] for name, row in gap.items()}
    rules = [n for n, row in gap.items() if row["kind"] == "rule" and n != "logistic"]
    return {
        **{name: value[name] for name in (*policies, *learners, "logistic")},
        "best rule": max(value[name] for name in rules),
    }


def draw(means: dict[str, dict[int, float]], file: Path) -> None:
    """One line a learner over the number of questions, a panel for each preset."""
    figure = Figure(figsize=(8.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, preset in zip(panels, PRESETS, strict=True):
        for name, of in means.items():
            base = name.removesuffix("-probe")
            both = base in ("logistic", "best rule")
            if not both and name.endswith("-probe") != (preset == "probe"):
                continue
            axes.plot(list(of), list(of.values()), "o-", color=COLOURS[base], label=base,
                      linewidth=2.4 if base == "ppo" else 1.4)  # fmt: skip
        axes.axhline(0, color="#57606a", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
        axes.set_title(f"preset {preset}", loc="left")
        axes.set_xlabel("recorded questions")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean oracle gap closed, held out")
    panels[1].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
