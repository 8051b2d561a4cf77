"""Every rival in one table: PPO against all rules and learners, both presets, held-out questions.

    python -m runs.quality.rivals [--traces FOLDER] [--n 3600]

Records the embedded model (or takes a recorded folder). For each preset the ensemble that PPO
trains, fitted-Q and the exact gradient, cross-fitted alike, are trained with three seeds on all
questions that are not held out; every rule's parameters are chosen on these. Writes
``runs/results/rivals.json``.

A *scalar rule* looks at one number or counts one thing; *rivals* are all methods that are neither
PPO nor the oracle.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.crossfit_rivals import crossfit_gradient, crossfit_q
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import RULES
from rlbudget.agents.training import train_on
from rlbudget.evaluate.evaluation import Assessment, as_json, assess, compared, utilities
from rlbudget.evaluate.measure import Learned
from rlbudget.evaluate.verdicts import most_utility, paired_by
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import split_questions, without
from runs.common import parser_of, recorded, row, write_result

SEEDS = (0, 1, 2)
MARGIN = 0.01
"""of oracle gap closed, that PPO may be below a learner"""
PRESETS: tuple[Preset, ...] = ("free", "probe")


def main() -> None:
    """Record, train, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of recording, split and bootstrap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        traces = recorded(args.traces, scratch, args.n, args.seed)
        table, contents = load_table(traces), digest(traces)
        split = split_questions(table, seed=args.seed)
        train = without(table, split.held_out)
        prices = [token_price_of(relative, train) for relative in RELATIVE_PRICES]
        policies: dict[str, Policy] = {}
        learners: dict[str, Learned] = {}
        for seed in SEEDS:
            for preset in PRESETS:
                name = f"ppo-{preset}-{seed}"
                train_on(traces, scratch / name, preset=preset, seed=seed, split_seed=args.seed)
                policies[name] = policy_of_run(scratch / name)
                print(name, flush=True)
                learners[f"fitted-q-{preset}-{seed}"] = crossfit_q(
                    train, prices, preset=preset, seed=seed
                )
                learners[f"exact-pg-{preset}-{seed}"] = crossfit_gradient(
                    train, preset=preset, seed=seed
                )
                print(f"learners-{preset}-{seed}", flush=True)
    rules = (*RULES, logistic_rule(train))
    assessment = assess(
        train,
        split.held_out,
        policies,
        rules=rules,
        learners=learners,
        validation=split.validation,
        seed=args.seed,
    )
    rows, details = rows_of(assessment)
    write_result(
        "rivals", rows,
        reproduce="python -m runs.quality.rivals", seeds=list(SEEDS), recording_seed=args.seed,
        traces_digest=contents,
        held_out_questions=len(np.unique(split.held_out.question_ids)), **details,
    )  # fmt: skip


def rows_of(assessment: Assessment) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the requirement, and numbers beside them."""
    summary = {row["method"]: row for row in as_json(assessment)["summary"]}
    gap = {name: row["mean_oracle_gap_closed"] for name, row in summary.items()}
    scalar = [name for name, row in summary.items() if row["kind"] == "rule" and name != "logistic"]
    best_rule = max(scalar, key=lambda name: gap[name])
    groups = {
        f"{method}-{preset}": [f"{method}-{preset}-{seed}" for seed in SEEDS]
        for method in ("ppo", "fitted-q", "exact-pg")
        for preset in PRESETS
    }
    mean = {group: float(np.mean([gap[name] for name in names])) for group, names in groups.items()}
    rows: list[dict[str, Any]] = []
    for preset in PRESETS:
        own = groups[f"ppo-{preset}"]
        value = mean[f"ppo-{preset}"]
        over = compared(assessment, own, [best_rule])
        over_logistic = compared(assessment, own, ["logistic"])
        rows += [
            row(f"{preset}: PPO against the best rule ({best_rule})",
                f">= {gap[best_rule]:.3f}, 95% interval of the margin above 0",
                f"{value:.3f}; margin {over}", over.verdict == "better"),
            row(f"{preset}: PPO against the logistic head",
                f">= {gap['logistic']:.3f}, 95% interval of the margin above 0",
                f"{value:.3f}; margin {over_logistic}", over_logistic.verdict == "better"),
            *(against(assessment, groups, mean, preset, rival)
              for rival in ("fitted-q", "exact-pg")),
            never_below_full(assessment, preset, own),
        ]  # fmt: skip
    rows += savings_rows(summary, groups)
    details = {
        "mean_oracle_gap_closed": {
            **mean,
            **{n: v for n, v in gap.items() if not any(n in names for names in groups.values())},
        },
        "savings_at_em_loss_0.01": {
            name: {"saved": entry["savings_at_em_loss"]["0.01"],
                   "held_out_em_loss": entry["held_out_em_loss"]["0.01"]}
            for name, entry in summary.items()
        },
        "not_applicable": {name: list(needs) for name, needs in assessment.not_applicable.items()},
    }  # fmt: skip
    return rows, details


def against(
    assessment: Assessment,
    groups: dict[str, list[str]],
    mean: dict[str, float],
    preset: str,
    rival: str,
) -> dict[str, Any]:
    """PPO may be at most ``MARGIN`` below a learner on the same observations."""
    own, other = f"ppo-{preset}", f"{rival}-{preset}"
    over = compared(assessment, groups[own], groups[other])
    verdict = over.verdict_at(MARGIN)
    return row(
        f"{preset}: PPO against {rival}, mean of 3 seeds each",
        f">= {mean[other] - MARGIN:.3f} ({mean[other]:.3f} - {MARGIN:g}), with the whole 95%"
        " interval",
        f"{mean[own]:.3f}; margin {over}; {verdict}",
        verdict in ("better", "not inferior"),
    )


def never_below_full(assessment: Assessment, preset: str, own: list[str]) -> dict[str, Any]:
    """At every relative price, utility against never stopping."""
    methods = [assessment.methods[name].chosen for name in ("full", *own)]
    full, *each = (utilities(assessment, name) for name in ("full", *own))
    ahead = np.mean(each, axis=0) - full
    found = [
        paired_by(
            assessment.resampling,
            ahead[:, k],
            most=most_utility(price, *(points[k].held_out for points in methods)),
        )
        for k, price in enumerate(assessment.token_prices)
    ]
    shown = ", ".join(f"{p:g}: {v}" for p, v in zip(RELATIVE_PRICES, found, strict=True))
    return row(
        f"{preset}: PPO's utility minus that of never stopping, at every relative price",
        "above 0 at each, with the whole 95% interval", shown,
        all(one.verdict == "better" for one in found),
    )  # fmt: skip


def savings_rows(summary: dict[str, Any], groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """PPO against the best rival that keeps the bound as well: of all of them, learners on the
    same observations among them, and of the rules alone. The preset of PPO that saves more on the
    held-out questions within the bound."""  # fmt: skip

    def spot(names: list[str]) -> tuple[float, float]:
        saved = np.mean([summary[n]["savings_at_em_loss"]["0.01"] for n in names])
        lost = np.mean([summary[n]["held_out_em_loss"]["0.01"] for n in names])
        return float(saved), float(lost)

    learned = {name for names in groups.values() for name in names}
    rivals = {n: spot([n]) for n, r in summary.items() if n not in learned and r["kind"] != "bound"}
    learners = {g: spot(names) for g, names in groups.items() if not g.startswith("ppo")}
    own = {group: spot(groups[group]) for group in ("ppo-free", "ppo-probe")}
    group = max(own, key=lambda name: (own[name][1] <= 0.01, own[name][0]))
    saved, lost = own[group]
    rows = []
    for what, against_whom in (("rival", rivals | learners), ("rule", rivals)):
        kept = {name: found for name, found in against_whom.items() if found[1] <= 0.01}
        best = max(kept, key=lambda name: kept[name][0])
        ratio = saved / kept[best][0] if kept[best][0] > 0 else float("inf")
        rows.append(
            row(
                f"savings at <= 1 point of EM loss, against the best {what} that keeps it when"
                " held out",
                f">= 1.2 times {kept[best][0]:.1%} ({best})",
                f"{ratio:.2f} times: {saved:.1%} ({group}), {100 * lost:.1f} points lost when"
                " held out",
                ratio >= 1.2 and lost <= 0.01,
            )
        )
    return rows


if __name__ == "__main__":
    main()
