"""The conformance suite (``suite.py``) in Hugging Face transformers; ``--record`` makes it anew.

    python -m runs.integrations.conformance [--record]

With ``--record``, and where there is none, records the questions greedily with the SmolLM2
reasoner, replays the plans on the traces and keeps questions and exits as
``runs/models/smollm2/reference.json``, beside how many exits each rule and the guard change: no
part of the plan may be idle. Then decodes them with the integrations of transformers. What other
engines do is measured by their own checks; all rows end up in ``runs/results/conformance.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.plan import Plan, load_plan
from runs.common import OUT
from runs.integrations.suite import (
    PLANS,
    REFERENCE,
    SEED,
    Suite,
    keep,
    load_suite,
    others,
    plan_file,
    row_of,
)

QUESTIONS = 100
TRACES = OUT / "conformance"
"""of the questions, as recorded last: to look at what differs"""
TIERS = ("gold", "plain", "gold", "audited", "gold")
LEVEL = 3


def main() -> None:
    from rlbudget.integrations.hf import BudgetProcessor
    from rlbudget.integrations.hf_generate import BudgetGenerate
    from rlbudget.models import load_model
    from rlbudget.tasks.load import load_task

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="make the reference anew")
    arguments = parser.parse_args()
    model = load_model("smollm2")
    if arguments.record or not REFERENCE.is_file():
        record_suite(model, load_task("smollm2", n=QUESTIONS, seed=SEED))
        print("the reference is made", file=sys.stderr, flush=True)
    rows, differences = [], {}
    for budget, name in ((BudgetGenerate, "plan"), (BudgetProcessor, "plan_top"),
                         (BudgetProcessor, "plan")):  # fmt: skip
        suite, engine = load_suite(name), f"transformers, {budget.__name__}"
        found = decoded(model, budget, suite)
        rows.append(row_of(engine, found, suite))
        differences[f"{engine}, {name}"] = others(found, suite)
        keep("Hugging Face", rows, differences=differences)


def decoded(model: Any, budget: Any, suite: Suite) -> list[list[Any]]:
    """The exits of a processor, or of what takes the place of ``generate``'s loop."""
    import torch
    from transformers import StoppingCriteriaList

    found: list[list[Any]] = [[] for _ in suite.requests]
    plan = suite.plan
    for task, places in suite.by_task().items():
        part = [suite.requests[place] for place in places]
        given = budget.for_model(
            model.network,
            model.tokenizer,
            plan,
            questions=[request.question for request in part],
            metadata=[request.metadata for request in part],
            task=task,
        )
        prompts = [model.prompt_ids(request.question) for request in part]
        width = max(map(len, prompts))
        inputs = {
            "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
            ),
        }
        room = len(model.vocabulary.exit_ids) + model.profile.max_answer_tokens
        processor = not hasattr(given, "decoded")
        ids = model.network.generate(
            **inputs,
            **({"logits_processor": [given]} if processor else {"custom_generate": given}),
            stopping_criteria=StoppingCriteriaList([all_exited(given)]),
            do_sample=False,
            max_new_tokens=model.profile.max_tokens + room,
            pad_token_id=int(model.vocabulary.eos_ids[0]),
        )
        endings = given.report(ids) if processor else given.report()
        for place, ending in zip(places, endings, strict=True):
            found[place] = [ending.thinking_tokens, ending.reason]
        print(f"{budget.__name__}, {suite.name}: {task}", file=sys.stderr, flush=True)
    return found


def all_exited(budget: Any) -> Any:
    """A criterion: every row has ended its thinking, and what it answers is not asked here."""

    def criterion(ids: Any, scores: Any) -> Any:
        ended = all(ending.reason is not None for ending in budget.report())
        return ids.new_full((len(ids),), ended).bool()

    return criterion


def record_suite(model: Any, task: Any) -> None:
    """Record greedily, replay each plan, keep both."""
    from rlbudget.decoding.record import record
    from rlbudget.traces.store import load_table, load_traces

    shutil.rmtree(TRACES, ignore_errors=True)
    record(model, task, TRACES, temperature=0.0, probe_tokens=0)
    table = load_table(TRACES)
    traces = {t.question_id: t for t in load_traces(TRACES)}
    asked = {
        traces[question.question_id].trace_id: RequestFacts(
            question.question,
            str(question.meta["family"]),
            {"tier": TIERS[place // 5 % len(TIERS)], "level": LEVEL},
        )
        for place, question in enumerate(task.questions)
    }
    natural = {t.trace_id: bool(t.meta["natural"]) for t in traces.values()}

    def exits(plan: Plan) -> dict[str, list[Any]]:
        composed = plan.compose()
        assert composed is not None
        played = composed.replay(table, plan.dial.price(plan.policy), asked)
        return {
            str(trace): [
                int(thinking),
                "policy" if stop >= 0 else "natural" if natural[str(trace)] else "max_tokens",
            ]
            for trace, stop, thinking in zip(
                table.trace_ids, played.stops, played.outcome.thinking, strict=True
            )
        }

    plans = {name: load_plan(plan_file(name)) for name in PLANS}
    found = {name: exits(plan) for name, plan in plans.items()}
    kept = {
        "requests": [asdict(request) for request in asked.values()],
        "exits": {name: [here[trace] for trace in asked] for name, here in found.items()},
        "changed_by": {name: changed(plan, exits) for name, plan in plans.items()},
    }
    REFERENCE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def changed(plan: Plan, exits: Callable[[Plan], Mapping[str, Any]]) -> dict[str, int]:
    """Part of the plan -> exits that are others without it."""
    whole, strategy = exits(plan), plan.strategy
    assert strategy.rules is not None
    head, *rules = re.split(r"(?m)^(?=\[\[rule\]\])", strategy.rules.read_text(encoding="utf-8"))
    without = {"guard": replace(strategy, guard=None)}
    with tempfile.TemporaryDirectory() as place:
        for at, rule in enumerate(rules):
            file = Path(place) / f"{at}.toml"
            file.write_text("".join([head, *rules[:at], *rules[at + 1 :]]), encoding="utf-8")
            name = rule.partition('name = "')[2].partition('"')[0]
            without[name] = replace(strategy, rules=file)
        return {
            part: differing(whole, exits(replace(plan, strategy=left)))
            for part, left in without.items()
        }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """How many exits."""
    return sum(one[trace] != other[trace] for trace in one)


if __name__ == "__main__":
    main()
