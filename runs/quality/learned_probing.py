"""Paying for a look only where it is worth it, against always and never looking.

    python -m runs.quality.learned_probing [--traces FOLDER] [--n 3600]

For three seeds, PPO in the presets ``free`` (never looks), ``probe`` (looks at every checkpoint)
and ``look`` (chooses), on the same training questions, at every relative price on the same
held-out ones. Then the same on made-up traces whose best policy is known: there only a trial
answer tells right from wrong, and only some checkpoints are worth one. Writes
``runs/results/learned_probing.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.arrays import Floats
from rlbudget.evaluate.verdicts import Verdict, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, token_price_of, utility
from rlbudget.policy.replay import replay
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import Split, split_questions
from runs.common import parser_of, recorded, write_result
from tests.shared.synthetic import puzzle

SEEDS = (0, 1, 2)
WAYS: dict[str, Preset] = {"never": "free", "always": "probe", "learned": "look"}


def main() -> None:
    """Record, train, measure, write."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        traces = recorded(args.traces, scratch, args.n)
        real, contents = (
            measure(split_questions(load_table(traces), seed=0), scratch),
            digest(traces),
        )
        made_up = split_questions(table_of([puzzle(k) for k in range(1200)]), seed=0)
        known = measure(made_up, scratch / "made-up")
    rows = [
        row("embedded model: utility of learned probing less the better of always and never", real),
        row("made-up traces where looks pay: the same", known),
    ]
    write_result(
        "learned_probing", rows, reproduce="python -m runs.quality.learned_probing",
        seeds=list(SEEDS), traces_digest=contents, relative_prices=list(RELATIVE_PRICES),
        embedded=real, made_up=known,
    )  # fmt: skip


def measure(split: Split, scratch: Path) -> dict[str, Any]:
    """Utilities and looks by way and relative price, means of the seeds."""
    policies: dict[str, list[Policy]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way, preset in WAYS.items():
            run = scratch / f"{way}-{seed}"
            train(split.train, split.validation, PPOConfig(preset=preset, seed=seed), run)
            policies[way].append(policy_of_run(run))
            print(run.name, flush=True)
    table = split.held_out
    means: dict[str, list[float]] = {way: [] for way in WAYS}
    looks: dict[str, list[float]] = {way: [] for way in WAYS}
    margins, intervals, verdicts = [], [], list[Verdict]()
    for relative in RELATIVE_PRICES:
        price = token_price_of(relative, split.train)
        each: dict[str, Floats] = {}
        every: list[Outcome] = []
        for way, of in policies.items():
            outcomes = [replay(policy, table, price).outcome for policy in of]
            every += outcomes
            each[way] = np.mean([utility(o, price) for o in outcomes], axis=0)
            means[way].append(float(each[way].mean()))
            looks[way].append(float(np.mean([o.probe.mean() for o in outcomes])))
        better = max(("always", "never"), key=lambda way: means[way][-1])
        found = paired(
            each["learned"] - each[better], table.question_ids, most=most_utility(price, *every)
        )
        margins.append(found.difference)
        intervals.append(found.interval)
        verdicts.append(found.verdict)
    return {"utility": means, "look_tokens": looks, "margin": margins, "margin_ci95": intervals,
            "verdict": verdicts,
            "held_out_questions": len(np.unique(table.question_ids))}  # fmt: skip


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    each = zip(RELATIVE_PRICES, found["margin"], found["margin_ci95"], strict=True)
    shown = ", ".join(f"{p:g}: {m:+.4f} [{low:+.4f}, {high:+.4f}]" for p, m, (low, high) in each)
    met = all(verdict == "better" for verdict in found["verdict"])
    wanted = "above 0 at every relative price, with the whole 95% interval"
    return {"row": name, "wanted": wanted, "reached": shown, "met": met}


if __name__ == "__main__":
    main()
