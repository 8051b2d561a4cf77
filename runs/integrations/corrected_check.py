"""A plan with an ensemble and a correction: is every shell's decode that of ``rlbudget.decode``?

    python -m runs.integrations.corrected_check [--n 100]

The embedded model under ``runs/models/embedded/plan.toml``, greedy: two policies decide together,
and exits that look wrong are taken back. ``BudgetGenerate`` in transformers, and the OpenAI client
against ``toy_server.py``, which lists all log-probabilities, so that the signals are exact. What
is compared: answer, text, every count of tokens, reason, exit, how often the decode thought on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import torch

from rlbudget.decoding.decode import core_of, decode_with
from rlbudget.decoding.decoded import Decoded
from rlbudget.integrations import openai
from rlbudget.integrations.hf_generate import BudgetGenerate
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.strategies.plan import Plan, load_plan
from rlbudget.tasks import load_task
from runs.common import ROOT
from runs.integrations.suite import SEED, keep
from runs.integrations.toy_server import Toy, serving

PLAN = ROOT / "runs" / "models" / "embedded" / "plan.toml"
COMPARED = (
    "answer", "text", "thinking_tokens", "probe_tokens", "answer_tokens", "reason", "stopped",
    "stopped_at", "resumed", "message",
)  # fmt: skip
BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    arguments = parser.parse_args()
    model, plan = load_model("embedded"), load_plan(PLAN)
    questions = [q.question for q in load_task("embedded", n=arguments.n, seed=SEED).questions]
    core = core_of(model, plan)
    wanted = [decode_with(core, model, question, temperature=0.0) for question in questions]
    say("rlbudget.decode")
    found = {
        "transformers, BudgetGenerate": generated(model, plan, questions),
        "OpenAI client, toy server": asyncio.run(asked(model, plan, questions)),
    }
    keep(
        "ensemble and correction",
        [row_of(engine, decodes, wanted) for engine, decodes in found.items()],
        stopped=sum(one.stopped for one in wanted),
        thought_on=sum(one.resumed > 0 for one in wanted),
        earlier_exit_kept=sum(
            one.stopped_at is not None and one.stopped_at < one.thinking_tokens for one in wanted
        ),
        differences={
            engine: [differing(*pair) for pair in zip(decodes, wanted, strict=True)
                     if differing(*pair)]
            for engine, decodes in found.items()
        },
    )  # fmt: skip


def generated(model: TransformersModel, plan: Plan, questions: Sequence[str]) -> list[Decoded]:
    """Those of ``BudgetGenerate``, in batches."""
    found: list[Decoded] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        budget = BudgetGenerate.for_model(model.network, model.tokenizer, plan, questions=part)
        prompts = [model.prompt_ids(question) for question in part]
        width = max(map(len, prompts))
        model.network.generate(
            input_ids=torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            custom_generate=budget,
            do_sample=False,
            max_new_tokens=model.profile.max_tokens + 2 * model.profile.max_answer_tokens + 64,
            pad_token_id=int(model.vocabulary.eos_ids[0]),
        )
        found += budget.decoded()
        say(f"BudgetGenerate {len(found)}")
    return found


async def asked(model: TransformersModel, plan: Plan, questions: Sequence[str]) -> list[Decoded]:
    """Those of the OpenAI client."""
    size = len(model.vocabulary.markers)
    found = []
    with serving(Toy(model, logprobs=size)) as address:
        async with openai.connect(address, plan, model.tokenizer, top_logprobs=size) as server:
            for question in questions:
                found.append(await openai.decode(server, question, temperature=0.0))
                say(f"OpenAI client {len(found)}")
    return found


def row_of(engine: str, found: Sequence[Decoded], wanted: Sequence[Decoded]) -> dict[str, Any]:
    """All of them must be the same."""
    same = sum(not differing(*pair) for pair in zip(found, wanted, strict=True))
    return {
        "row": "questions, greedy, an ensemble and a correction: the same as rlbudget.decode,"
        f" {engine}",
        "wanted": f"{len(wanted)} of {len(wanted)}",
        "reached": f"{same} of {len(wanted)}",
        "met": same == len(wanted),
    }


def differing(one: Decoded, other: Decoded) -> dict[str, Any]:
    """Field -> both values, where they differ."""
    return {
        name: [getattr(one, name), getattr(other, name)]
        for name in COMPARED
        if getattr(one, name) != getattr(other, name)
    }


def say(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
