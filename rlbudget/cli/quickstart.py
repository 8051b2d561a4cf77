"""The main job in one call: record the embedded model, train, freeze, evaluate, decode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.agents.freeze import freeze
from rlbudget.agents.training import train_on
from rlbudget.cli.arguments import Folder, N
from rlbudget.console import note, plain_table, progress, show, tell
from rlbudget.decoding.decode import decode
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.files import write_text
from rlbudget.models import load_model
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.tasks import load_task
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import load_traces
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace

SHOWN = 10
MINIMUM = 100
DECODE_RELATIVE_PRICE = 0.1


@dataclass(frozen=True)
class Quickstart:
    """Run every step on the embedded model: record, train, freeze, evaluate, decode."""

    out: Folder = Path("out/quickstart")
    """Folder for traces, run, policy, evaluation and report."""
    seed: N = 0
    """Seed of the questions, the decodes, the split and the training."""
    n: N = 2400
    """Questions to record; 30% of them are held out."""

    def execute(self) -> None:
        """Run it."""
        quickstart(self.out, seed=self.seed, n=self.n)


def quickstart(folder: Path, *, seed: int = 0, n: int = 2400) -> None:
    """Fill ``folder`` with traces, run, policy, evaluation and report.

    ``n`` questions are recorded and split by question: 55% to train, 15% to validate, 30% held
    out. What is already recorded and trained under the same settings is kept. Raises
    ``UserError`` for a folder that was filled with another ``n`` or ``seed``.
    """
    if n < MINIMUM:
        raise UserError(f"--n {n}: the quickstart needs at least {MINIMUM} questions")
    traces_folder, run, policy_folder = folder / "traces", folder / "run", folder / "policy"
    evaluation_folder = folder / "evaluation"

    note(f"1/5 Recording {n} full decodes of the embedded model")
    task = load_task("embedded", n=n, seed=seed)
    model = load_model("embedded")
    with progress("Recording") as advance:
        record(
            model, task, traces_folder, seed=seed, store_text=True, resume=True, progress=advance
        )

    note("2/5 Training a policy on the training questions")
    with progress("Training") as advance:
        train_on(traces_folder, run, seed=seed, split_seed=seed, resume=True, progress=advance)

    note(f"3/5 Freezing the best weights into {policy_folder}")
    freeze(run, policy_folder, overwrite=True)
    policy = load_policy(policy_folder)

    note("4/5 Evaluating every rule and the policy on the held-out questions")
    evaluation = evaluate_folder(
        traces_folder, policies=[policy_folder], out=evaluation_folder, seed=seed, write_cards=True
    )

    note(f"5/5 Decoding {SHOWN} held-out questions live under the policy")
    traces = load_traces(traces_folder)
    held_out = set(split_questions(table_of(traces), seed=seed).held_out.trace_ids.tolist())
    unseen = [trace for trace in traces if trace.trace_id in held_out]
    chosen = unseen[:: max(1, len(unseen) // SHOWN)][:SHOWN]
    price = DECODE_RELATIVE_PRICE / float(evaluation["full"]["tokens"]["total"])
    decodes = []
    with progress("Decoding") as advance:
        for done, trace in enumerate(chosen, start=1):
            decodes.append(_decoded(model, trace, policy, price))
            advance(done, len(chosen))
    tell("Held-out questions, decoded live")
    head = ["question", "target", "full", "policy", "full tokens", "tokens"]
    show(plain_table(head, [[question[-44:], *rest] for question, *rest in _rows(decodes)]))
    write_text(folder / "decodes.json", json.dumps(decodes, indent=1, ensure_ascii=False))
    write_text(folder / "report.md", _report(evaluation, evaluation_folder, decodes))
    tell(f"\nReport: {folder / 'report.md'}   TensorBoard: tensorboard --logdir {run}")


def _decoded(model: Any, trace: Trace, policy: Policy, token_price: float) -> dict[str, Any]:
    seed = trace.meta["row_seed"]
    live = decode(model, trace.question, policy, token_price=token_price, seed=seed)
    return {
        "question": trace.question,
        "target": trace.target,
        "full": {
            "answer": trace.final.answer,
            "tokens": trace.final.thinking_tokens + trace.final.answer_tokens,
        },
        "policy": {
            "answer": live.answer,
            "tokens": live.total_tokens,
            "stopped_at": live.stopped_at,
            "reason": live.reason,
        },
    }


def _rows(decodes: list[dict[str, Any]]) -> list[list[str]]:
    """Of the tables: question, target, both answers, tokens of both."""
    return [
        [
            " ".join(one["question"].split()),
            one["target"],
            *(one[way]["answer"] for way in ("full", "policy")),
            *(str(one[way]["tokens"]) for way in ("full", "policy")),
        ]
        for one in decodes
    ]


def _report(
    evaluation: dict[str, Any], evaluation_folder: Path, decodes: list[dict[str, Any]]
) -> str:
    full = evaluation["full"]
    table = (evaluation_folder / "table.txt").read_text()
    rows = "\n".join(
        f"| {' | '.join([question.replace('|', '/'), *rest])} |"
        for question, *rest in _rows(decodes)
    )
    return f"""# What stopping early would do

{evaluation["held_out_questions"]} held-out questions, none of them seen in training.
Decoded to its natural end the model is right on {full["exact_match"]:.1%} of them,
in {full["tokens"]["total"]:.1f} tokens a question.
Every token counts: thinking, trial answers and answer.

![Exact match against tokens]({evaluation_folder.name}/frontier.svg)

```
{table.rstrip()}
```

## Ten of them, decoded live under the policy

| question | target | full answer | answer under the policy | full tokens | tokens |
|---|---|---|---|---:|---:|
{rows}
"""
