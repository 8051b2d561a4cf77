"""What a policy of the text alone is worth, for servers that show no log-probabilities.

    python -m runs.quality.text_only [--traces FOLDER] [--n N]
    python -m runs.quality.text_only --smollm2

On decodes of the embedded model, recorded anew with the signals of the text (or those of a folder
that has them); with ``--smollm2`` on the kept traces of SmolLM2, which hold no texts: their
thoughts are those that ``thoughts_again`` has decoded again from their seeds, as many as lie in
``out/thoughts.jsonl``. Three seeds of PPO on the text
alone, and three on all signals; everything is chosen on training questions, and compared by the
question on held-out ones, in mean oracle gap closed over the relative prices. The rule that it is
compared with is the best one on the held-out questions, which favours the rule.
Writes ``runs/results/text_only.json``.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.agents.rules import TEXT_RULES
from rlbudget.agents.rules.unprobed import FIXED, FULL
from rlbudget.decoding.checkpoints import Written
from rlbudget.decoding.record import record
from rlbudget.evaluate.evaluation import Assessment, as_json, assess, compared, gap_closed
from rlbudget.evaluate.verdicts import Paired
from rlbudget.models import load_model
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import feature_names
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.tasks import load_task
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable, split_questions, without
from rlbudget.traces.trace import Trace
from runs.common import KEPT_TRACES, parser_of, row, write_part
from runs.quality.thoughts_again import FILE, thoughts

SEEDS = (0, 1, 2)


def main() -> None:
    """Record, train, compare, write."""
    parser = parser_of(__doc__, 1700)
    parser.add_argument("--smollm2", action="store_true", help="of the kept traces instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.smollm2:
        name, table, share = "SmolLM2", smollm2(thoughts(FILE)), 0.5
    else:
        name, table, share = "embedded", embedded(args.traces, args.n), 0.3
    found = measured(table, held_out=share)
    rules = [rule.name for rule in TEXT_RULES]
    write_part("text_only", name, rows_of(name, found), seeds=list(SEEDS), rules=rules,
               signals=list(TEXT_SIGNALS), **found)  # fmt: skip


def embedded(traces: Path | None, n: int) -> TraceTable:
    """Decodes of the embedded model with the signals of the text beside the others."""
    if traces is not None:
        return load_table(traces)
    with tempfile.TemporaryDirectory() as scratch:
        task = load_task("embedded", n=n, seed=16)
        record(load_model("embedded"), task, scratch, text_signals=True)
        return load_table(scratch)


def smollm2(again: dict[str, list[int]]) -> TraceTable:
    """The kept traces whose thoughts are known, with the signals of their texts."""
    vocabulary = load_model("smollm2").vocabulary
    traces = [t for t in load_traces(KEPT_TRACES) if t.trace_id in again]
    return table_of([_with_text(trace, again[trace.trace_id], vocabulary) for trace in traces])


def _with_text(trace: Trace, ids: list[int], vocabulary: Vocabulary) -> Trace:
    written = Written(vocabulary, texts=True)
    points = tuple(
        replace(point, signals=point.signals | written.at(0, ids[: point.thinking_tokens]))
        for point in trace.checkpoints
    )
    return replace(trace, checkpoints=points)


def measured(table: TraceTable, *, held_out: float) -> dict[str, Any]:
    """Everything about one model."""
    split = split_questions(table, held_out=held_out, seed=0)
    text = set(TEXT_SIGNALS)
    features = {"text": feature_names(text, "free"), "all": feature_names(table.signals, "free")}
    policies: dict[str, Policy] = {}
    for name, own in features.items():
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as scratch:
                config = PPOConfig(features=own, seed=seed)
                train(split.train, split.validation, config, Path(scratch))
                policies[f"{name}-{seed}"] = policy_of_run(Path(scratch))
            print(f"{name} {seed}", file=sys.stderr, flush=True)
    rules = (FULL, FIXED, *TEXT_RULES)
    assessment = assess(
        without(table, split.held_out), split.held_out, policies, rules=rules,
        validation=split.validation, seed=0,
    )  # fmt: skip
    best = max((rule.name for rule in rules), key=lambda name: gap_closed(assessment, name))
    of_text, others = ([f"{name}-{seed}" for seed in SEEDS] for name in ("text", "all"))
    summary = as_json(assessment)["summary"]
    return {
        "questions": len(np.unique(table.question_ids)),
        "held_out_questions": len(np.unique(split.held_out.question_ids)),
        "full": as_json(assessment)["full"],
        "best_rule": best,
        "against": {
            name: _shown(compared(assessment, of_text, names))
            for name, names in {
                "never stopping": ["full"], "the best constant budget": ["fixed"],
                f"the best rule ({best})": [best], "log-probabilities": others,
            }.items()
        },
        "gap_closed": _means(assessment, policies, [rule.name for rule in rules]),
        "savings_at_one_point": {
            one["method"]: [one["savings_at_em_loss"]["0.01"], one["held_out_em_loss"]["0.01"]]
            for one in summary
        },
    }  # fmt: skip


def _shown(paired: Paired) -> dict[str, Any]:
    return {"difference": paired.difference, "ci95": list(paired.interval),
            "verdict": paired.verdict}  # fmt: skip


def _means(
    assessment: Assessment, policies: dict[str, Policy], rules: list[str]
) -> dict[str, float]:
    of_rules = {name: gap_closed(assessment, name) for name in rules}
    return of_rules | {
        kind: float(np.mean([gap_closed(assessment, n) for n in policies if n.startswith(kind)]))
        for kind in ("text", "all")
    }


def rows_of(name: str, part: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one model."""
    rows = []
    for against, one in part["against"].items():
        low, high = one["ci95"]
        reached = (
            f"{one['difference']:+.3f} ({low:+.3f} to {high:+.3f}), {one['verdict']},"
            f" {part['held_out_questions']} held-out questions"
        )
        wanted = ">= 0, and the interval says so"
        if against == "log-probabilities":
            wanted, low = "stated: what the text alone costs", 0.0
        what = f"{name}: the text alone against {against}, mean oracle gap closed"
        rows.append(row(what, wanted, reached, low >= 0))
    return rows


if __name__ == "__main__":
    main()
