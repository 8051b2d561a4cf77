"""Which features the policy needs: PPO with each group of them left out in turn.

    python -m runs.quality.ablation [--traces FOLDER] [--n 3600] [--seeds 3]

Records the embedded model (or takes a recorded folder) and trains each preset on all features and
on all but one group: a signal with everything made of it, or a transform over history wherever it
is used. A report on the held-out questions, which chooses nothing. Writes
``runs/results/ablation.json``; a row is met where its 95% interval, paired by question, does not
show that leaving the group out helps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.agents.rules import RULES
from rlbudget.evaluate.evaluation import assess, compared, gap_closed
from rlbudget.policy.observation import Preset, features_of
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import split_questions, without
from runs.common import parser_of, recorded, write_result

PRESETS: tuple[Preset, ...] = ("free", "probe")
SIGNALS: dict[str, tuple[str, ...]] = {
    "thinking tokens": ("thinking_tokens",),
    "entropy": ("entropy_",),
    "log-probability": ("logprob_",),
    "margin": ("margin_",),
    "end-of-thinking": ("p_end_",),
    "end gap": ("end_gap_",),
    "hedges and conclusions": ("hedges", "conclusions"),
    "top-k": ("topk_",),
    "trial answer: confidence": ("probe_confidence",),
    "trial answer: streak, distinct, share": ("probe_streak", "probe_distinct", "probe_share"),
}
"""group -> how the names of its features begin"""
TRANSFORMS = ("ema", "min", "max", "mean", "sum", "delta", "age")
FIXED = tuple(rule for rule in RULES if rule.name in ("full", "fixed"))


def main() -> None:
    """Record, train, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each set of features")
    parser.add_argument("--seed", type=int, default=0, help="of recording, split and bootstrap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        traces = recorded(args.traces, scratch, args.n, args.seed)
        table, contents = load_table(traces), digest(traces)
        split = split_questions(table, seed=args.seed)
        rows: list[dict[str, Any]] = []
        details: dict[str, Any] = {}
        for preset in PRESETS:
            policies = {}
            groups = groups_of(features_of(table, preset))
            for name, features in groups.items():
                for seed in range(args.seeds):
                    run = scratch / f"{preset}-{name}-{seed}".replace(" ", "-")
                    config = PPOConfig(preset=preset, features=features, seed=seed)
                    train(split.train, split.validation, config, run)
                    policies[f"{name}/{seed}"] = policy_of_run(run)
                print(preset, name, flush=True)
            assessment = assess(
                without(table, split.held_out), split.held_out, policies,
                rules=FIXED, validation=split.validation, seed=args.seed,
            )  # fmt: skip
            seeds = {name: [f"{name}/{seed}" for seed in range(args.seeds)] for name in groups}
            details[preset] = {
                name: {
                    "features": len(features),
                    "mean_oracle_gap_closed": [gap_closed(assessment, own) for own in seeds[name]],
                }
                for name, features in groups.items()
            }
            for name in groups:
                if name == ALL:
                    continue
                over = compared(assessment, seeds[name], seeds[ALL])
                value = np.mean(details[preset][name]["mean_oracle_gap_closed"])
                whole = np.mean(details[preset][ALL]["mean_oracle_gap_closed"])
                rows.append(
                    {
                        "row": f"{preset}: without {name}",
                        "wanted": f"worse than all features ({whole:.3f}), 95% interval below 0",
                        "reached": f"{value:.3f}; difference {over}",
                        "met": over.verdict == "worse",
                    }
                )
    write_result(
        "ablation", rows, reproduce="python -m runs.quality.ablation",
        seeds=list(range(args.seeds)),
        recording_seed=args.seed, traces_digest=contents,
        held_out_questions=len(np.unique(split.held_out.question_ids)),
        mean_oracle_gap_closed=details,
    )  # fmt: skip


ALL = "all features"


def groups_of(features: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What is left out -> the features that stay; groups that the traces lack are not named."""

    def kept(*, starts: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> tuple[str, ...]:
        return tuple(f for f in features if not (f.startswith(starts) or f.endswith(ends)))

    found = {ALL: features}
    for group, starts in SIGNALS.items():
        found[group] = kept(starts=starts)
    for transform in TRANSFORMS:
        found[transform] = kept(ends=(f".{transform}",))
    history = tuple(f".{transform}" for transform in TRANSFORMS)
    found["any history"] = kept(ends=history)
    return {
        name: left for name, left in found.items() if name == ALL or 0 < len(left) < len(features)
    }


if __name__ == "__main__":
    main()
