"""The conformance suite: the same questions, greedy, the same policy, and where a replay exits.

    python -m runs.integrations.conformance [--record]   # the reference; holds transformers to it

With ``--record``, and where there is no reference, records the questions greedily with the SmolLM2
reasoner, replays the kept policies on the traces and keeps questions and exits as
``runs/models/smollm2/reference.json``, which every engine's check reads: ``policy`` looks at all
free signals, ``policy_top`` at those that the 20 likeliest tokens give. Then decodes them with the
adapters for transformers. Writes ``runs/results/conformance_hf.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.common import KEPT, write_result

REFERENCE, POLICY = KEPT / "reference.json", KEPT / "policy"
POLICIES = ("policy", "policy_top")
WANTED = 0.99
SEED = 11
RELATIVE_PRICE = 0.05
"""of the suite: exits lie everywhere, natural ends among them"""
BATCH = 16


@dataclass(frozen=True, slots=True)
class Reference:
    """Questions and where a replay exits."""

    questions: list[str]
    policy: str
    """of ``POLICIES``"""
    exits: list[list[Any]]
    """(thinking tokens, reason) of each"""
    token_price: float


def load_reference(policy: str = "policy", path: Path = REFERENCE) -> Reference:
    """What this script kept of one of ``POLICIES``."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Reference(kept["questions"], policy, **kept["policies"][policy])


def conforms(engine: str, found: Sequence[Sequence[Any]], reference: Reference) -> dict[str, Any]:
    """The row of an engine; ``found`` are its exits as in ``Reference.exits``, or of the first."""
    wanted = reference.exits[: len(found)]
    same = sum(list(one) == other for one, other in zip(found, wanted, strict=True))
    return {
        "row": f"greedy questions with the exit of the replay, {engine}, {reference.policy}",
        "wanted": f">= {WANTED:.0%}",
        "reached": f"{same} of {len(wanted)}",
        "met": same >= WANTED * len(wanted),
    }


def main() -> None:
    import torch
    from transformers import StoppingCriteriaList

    from rlbudget.integrations.hf import BudgetProcessor
    from rlbudget.integrations.hf_generate import BudgetGenerate
    from rlbudget.models import load_model
    from rlbudget.policy.folder import load_policy
    from rlbudget.tasks.load import load_task

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="questions of a new reference")
    parser.add_argument("--record", action="store_true", help="make the reference anew")
    arguments = parser.parse_args()
    model = load_model("smollm2")
    policies = {name: load_policy(KEPT / name) for name in POLICIES}
    if arguments.record or not REFERENCE.is_file():
        references = made(model, policies, load_task("smollm2", n=arguments.n, seed=SEED))
        text = json.dumps(references_json(references), indent=1) + "\n"
        REFERENCE.write_text(text, encoding="utf-8")
        print("the reference is made", file=sys.stderr, flush=True)
    rows = []
    for budget, names in ((BudgetProcessor, POLICIES), (BudgetGenerate, POLICIES[:1])):
        for reference in map(load_reference, names):
            found: list[list[Any]] = []
            for start in range(0, len(reference.questions), BATCH):
                part = reference.questions[start : start + BATCH]
                given: Any = budget.for_model(
                    model.network,
                    model.tokenizer,
                    policies[reference.policy],
                    token_price=reference.token_price,
                )
                prompts = [model.prompt_ids(question) for question in part]
                width = max(map(len, prompts))
                inputs = {
                    "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
                    "attention_mask": torch.tensor(
                        [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
                    ),
                }
                room = len(model.vocabulary.exit_ids) + model.profile.max_answer_tokens
                where: dict[str, Any] = (
                    {"logits_processor": [given]}
                    if budget is BudgetProcessor
                    else {"custom_generate": given}
                )
                ids = model.network.generate(
                    **inputs,
                    **where,
                    stopping_criteria=StoppingCriteriaList([all_exited(given)]),
                    do_sample=False,
                    max_new_tokens=model.profile.max_tokens + room,
                    pad_token_id=int(model.vocabulary.eos_ids[0]),
                )
                outcomes = given.report(ids) if budget is BudgetProcessor else given.report()
                found += [[outcome.thinking_tokens, outcome.reason] for outcome in outcomes]
                print(f"{budget.__name__}: {len(found)}", file=sys.stderr, flush=True)
            rows.append(conforms(f"transformers, {budget.__name__}", found, reference))
    write_result("conformance_hf", rows, seed=SEED)


def all_exited(budget: Any) -> Any:
    """A criterion: every row has ended its thinking, and what it answers is not asked here."""

    def criterion(ids: Any, scores: Any) -> Any:
        ended = all(outcome.reason is not None for outcome in budget.report())
        return ids.new_full((len(ids),), ended).bool()

    return criterion


def made(model: Any, policies: Mapping[str, Any], task: Any) -> list[Reference]:
    """Record greedily and replay each policy."""
    from rlbudget.decoding.record import record
    from rlbudget.policy.replay import replay
    from rlbudget.traces.store import load_table, load_traces

    with tempfile.TemporaryDirectory() as scratch:
        record(model, task, scratch, temperature=0.0)
        table = load_table(scratch)
        natural = {t.trace_id: bool(t.meta["natural"]) for t in load_traces(scratch)}
    references = []
    for name, policy in policies.items():
        price = RELATIVE_PRICE / float(policy.config["trained"]["traces"]["mean_full_tokens"])
        played = replay(policy, table, price)
        exits = {
            str(question): [
                int(thinking),
                "policy" if stop >= 0 else "natural" if natural[str(trace)] else "max_tokens",
            ]
            for question, trace, stop, thinking in zip(
                table.question_ids,
                table.trace_ids,
                played.stops,
                played.outcome.thinking,
                strict=True,
            )
        }
        references.append(
            Reference(
                [question.question for question in task.questions],
                name,
                [exits[question.question_id] for question in task.questions],
                price,
            )
        )
    return references


def references_json(references: Sequence[Reference]) -> dict[str, Any]:
    return {
        "questions": references[0].questions,
        "policies": {
            one.policy: {"exits": one.exits, "token_price": one.token_price} for one in references
        },
    }


if __name__ == "__main__":
    main()
