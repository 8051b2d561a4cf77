"""What the Hugging Face integration costs a token, and what a policy saves by the clock.

    python -m runs.integrations.integration_overhead [--model FOLDER --profile smollm2]
        [--policy FOLDER] [--name N]

Two parts. *Overhead*: ``generate`` of a fixed number of tokens with a policy of the usual size that
never stops, against ``generate`` without it, in alternating runs; ends are suppressed in both, so
that every token is a thinking one. *Saving* (with ``--policy``): questions decoded one by
one, in full and under the policy in turns, with the same seeds. Prints one JSON object as its last
line and keeps it as ``runs/results/N.json`` only if ``--name`` is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlbudget.integrations.hf import BudgetProcessor
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.folder import Policy, load_policy, make_policy
from rlbudget.policy.observation import feature_names
from rlbudget.signals.tokens import SIGNALS
from rlbudget.tasks import load_task
from runs.common import write_result

BATCHES = {1: 0.02, 16: 0.05}
"""batch size -> the most that the integration may add to a token"""
SAVED = 0.85
"""of the share of tokens saved, the share of time that must be saved too"""
SEED = 0


def never_stops(threshold: float = 1.0) -> Policy:
    """A network of the usual size with random weights and a threshold that no chance exceeds."""
    features = feature_names(SIGNALS, "free")
    rng = np.random.default_rng(SEED)
    sizes = [len(features) + 1, 64, 64, 2]
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    tensors = {
        "obs_mean": np.zeros(len(features), dtype=np.float32),
        "obs_std": np.ones(len(features), dtype=np.float32),
    }
    for name, inputs, outputs in zip(names, sizes[:-1], sizes[1:], strict=True):
        weight = rng.normal(scale=inputs**-0.5, size=(outputs, inputs))
        tensors[f"{name}.weight"] = weight.astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(outputs, dtype=np.float32)
    return make_policy(
        tensors, features=features, preset="free", price_range=(1e-5, 1e-2), threshold=threshold
    )


def inputs_of(model: TransformersModel, questions: Sequence[str]) -> dict[str, torch.Tensor]:
    prompts = [model.prompt_ids(question) for question in questions]
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    device = model.network.device
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def overhead(
    model: TransformersModel, questions: Sequence[str], tokens: int, runs: int
) -> dict[str, Any]:
    """Seconds a step with and without the integration, for one batch of questions."""
    inputs = inputs_of(model, questions)
    budget = BudgetProcessor.for_model(
        model.network,
        model.tokenizer,
        never_stops(),
        profile=model.profile.name,
        max_thinking_tokens=10**6,
    )
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "suppress_tokens": model.vocabulary.end_first_ids.tolist(),
        "pad_token_id": int(model.vocabulary.eos_ids[0]),
    }

    def seconds(processors: list[Any]) -> float:
        begun = time.perf_counter()
        ids = model.network.generate(**inputs, **settings, logits_processor=processors)
        taken = time.perf_counter() - begun
        if ids.shape[1] != inputs["input_ids"].shape[1] + tokens:
            raise SystemExit("a run ended early; its time cannot be compared")
        return taken / tokens

    seconds([]), seconds([budget])
    plain: list[float] = []
    under: list[float] = []
    for run in range(runs):
        # Whoever comes second finds a warmer machine: take turns.
        for which in (0, 1) if run % 2 else (1, 0):
            (plain if which == 0 else under).append(seconds([budget] if which else []))
    outcomes = budget.report()
    if any(o.reason is not None or o.message is not None for o in outcomes):
        raise SystemExit("a row stopped thinking; its time cannot be compared")
    return {
        "batch_size": len(questions),
        "overhead": statistics.median(u / p for u, p in zip(under, plain, strict=True)) - 1,
        "plain_ms": [round(1e3 * t, 3) for t in plain],
        "integration_ms": [round(1e3 * t, 3) for t in under],
    }


def saving(
    model: TransformersModel, policy: Policy, questions: Sequence[str], token_price: float | None
) -> dict[str, Any]:
    """Seconds and new tokens of the questions one by one, in full and under the policy."""
    room = model.profile.max_answer_tokens + len(model.vocabulary.exit_ids)
    limit = model.profile.max_tokens + room
    budget = BudgetProcessor.for_model(
        model.network,
        model.tokenizer,
        policy,
        profile=model.profile.name,
        token_price=token_price,
        max_new_tokens=limit,
    )
    seconds, tokens = {"full": 0.0, "policy": 0.0}, {"full": 0, "policy": 0}
    for place, question in enumerate(questions):
        inputs = inputs_of(model, [question])
        for way in ("full", "policy") if place % 2 else ("policy", "full"):
            torch.manual_seed(place)
            begun = time.perf_counter()
            ids = model.network.generate(
                **inputs,
                do_sample=True,
                temperature=model.profile.temperature,
                top_k=0,
                max_new_tokens=limit,
                pad_token_id=int(model.vocabulary.eos_ids[0]),
                logits_processor=[budget] if way == "policy" else [],
            )
            seconds[way] += time.perf_counter() - begun
            tokens[way] += ids.shape[1] - inputs["input_ids"].shape[1]
    return {
        "questions": len(questions),
        "seconds": {way: round(value, 2) for way, value in seconds.items()},
        "tokens": tokens,
        "time_saved": 1 - seconds["policy"] / seconds["full"],
        "tokens_saved": 1 - tokens["policy"] / tokens["full"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--profile", default=None)
    parser.add_argument("--task", default="embedded", help="where the questions come from")
    parser.add_argument("--policy", default=None, help="a policy folder, for the second part")
    parser.add_argument("--token-price", type=float, default=None, help="reward lost per token")
    parser.add_argument("--tokens", type=int, default=128, help="tokens a run")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--n", type=int, default=50, help="questions of the second part")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default=None, help="keep the result under this name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, profile=arguments.profile)
    drawn = load_task(arguments.task, n=max(arguments.n, *BATCHES), seed=SEED).questions
    questions = [question.question for question in drawn]
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {"overhead": []}
    for size, most in BATCHES.items():
        found = overhead(model, questions[:size], arguments.tokens, arguments.runs)
        details["overhead"].append(found)
        rows.append(
            {
                "row": f"what the Hugging Face integration adds to a step, batch {size}",
                "wanted": f"<= {most:g}",
                "reached": round(found["overhead"], 4),
                "met": found["overhead"] <= most,
            }
        )
    if arguments.policy is not None:
        policy = load_policy(arguments.policy)
        found = saving(model, policy, questions[: arguments.n], arguments.token_price)
        details["saving"] = found
        wanted = SAVED * found["tokens_saved"]
        rows.append(
            {
                "row": "share of the time saved by a policy, batch 1, wanted in proportion to the"
                f" {found['tokens_saved']:.3f} of the tokens",
                "wanted": f">= {wanted:.3f}",
                "reached": round(found["time_saved"], 3),
                "met": found["time_saved"] >= wanted,
            }
        )
    write_result(
        arguments.name or "integration_overhead",
        rows,
        keep=arguments.name is not None,
        seed=SEED,
        details=details
        | {
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "tokens_a_run": arguments.tokens,
            "threads": arguments.threads,
            "load_average_at_the_end": round(os.getloadavg()[0], 2),
        },
    )


if __name__ == "__main__":
    main()
