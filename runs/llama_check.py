"""Whether llama-server stops where transformers does: greedy, the same policy and questions.

    runs/llama_server.sh
    python runs/llama_check.py --model FOLDER --policy POLICY [--n 100]

FOLDER is a Llama of transformers (``rlbudget.models.smollm2.smollm2_folder()``, or ``embedded``),
POLICY a frozen policy trained on its traces. Writes ``runs/results/llama_check.json``. The model is
converted to f32 in a temporary file, the server started with a cache in f32. The control route is
tried on a tenth of the questions, unless ``--no-control``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llama_process import llama_server
from results import write_result
from smol_gguf import EMBEDDED, write_gguf

from rlbudget.adapters.llama_server import Server, ServerError, connect, decode, decode_chat
from rlbudget.decode import Decoded
from rlbudget.decode import decode as decode_here
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.policy import Policy, load_policy
from rlbudget.tasks.load import load_task

WANTED = 0.99
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a Llama of transformers, or embedded")
    parser.add_argument("--policy", required=True, help="a frozen policy")
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="of both decoders (default: 1)")
    parser.add_argument("--token-price", type=float, help="default: the policy's")
    parser.add_argument("--no-control", action="store_true", help="leave the control route out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        check(arguments)
    except (UserError, ServerError) as error:
        sys.exit(f"error: {error}")


def check(arguments: argparse.Namespace) -> None:
    policy = load_policy(arguments.policy)
    price = arguments.token_price or policy.default_price
    folder = EMBEDDED if arguments.model == "embedded" else Path(arguments.model)
    task = "embedded" if arguments.model == "embedded" else "smollm2"
    questions = [q.question for q in load_task(task, n=arguments.n, seed=SEED).questions]
    wanted, reference_seconds = reference(arguments.model, policy, questions, price)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        write_gguf(folder, file)
        with (
            llama_server(file, context=1024, threads=arguments.threads) as address,
            connect(address, policy, folder, token_price=price) as server,
        ):
            started = time.perf_counter()
            found = []
            for at, question in enumerate(questions, 1):
                found.append(decode(server, question))
                progress(f"llama-server {at}/{len(questions)}")
            seconds = time.perf_counter() - started
            late = {} if arguments.no_control else control(server, questions[::10])
            report(found, wanted, server, policy, price, seconds, reference_seconds, late)


def reference(
    model: str, policy: Policy, questions: list[str], price: float
) -> tuple[list[Decoded], float]:
    profile = policy.recorded.get("profile")
    loaded = load_model(model, profile=profile)
    started = time.perf_counter()
    decoded = []
    for at, question in enumerate(questions, 1):
        decoded.append(
            decode_here(
                loaded,
                question,
                policy,
                token_price=price,
                temperature=0,
                max_tokens=policy.recorded.get("max_tokens"),
            )
        )
        progress(f"transformers {at}/{len(questions)}")
    return decoded, time.perf_counter() - started


def control(server: Server, questions: list[str]) -> dict[str, Any]:
    """How late a control request is obeyed, or why the route is closed."""
    try:
        found = [decode_chat(server, question) for question in questions]
    except ServerError as error:
        return {"control": str(error)}
    late = [one.late_tokens for one in found if one.stopped]
    return {
        "control": {
            "questions": len(found),
            "stopped": len(late),
            "late_tokens_mean": round(statistics.mean(late), 2) if late else None,
            "late_tokens_max": max(late, default=None),
            "tokens_without_probabilities": sum(one.unseen_tokens for one in found),
        }
    }


def report(
    found: list[Decoded],
    wanted: list[Decoded],
    server: Server,
    policy: Policy,
    price: float,
    seconds: float,
    reference_seconds: float,
    late: dict[str, Any],
) -> None:
    same = [exit_of(one) == exit_of(other) for one, other in zip(found, wanted, strict=True)]
    answers = [one.answer == other.answer for one, other in zip(found, wanted, strict=True)]
    share = sum(same) / len(same)
    write_result(
        "llama_check",
        [
            {
                "row": "greedy questions with transformers' exit, llama-server by token ids",
                "wanted": f">= {WANTED:.0%}",
                "reached": f"{share:.0%} of {len(same)}",
                "met": share >= WANTED,
            }
        ],
        seed=SEED,
        details={
            "token_price": price,
            "signals": sorted({feature.partition(".")[0] for feature in policy.features}),
            "alternatives": server.n_probs,
            "same_answers": sum(answers),
            "stopped_by_the_policy": sum(one.stopped for one in wanted),
            "other_exits": [
                [exit_of(one), exit_of(other)]
                for one, other in zip(found, wanted, strict=True)
                if exit_of(one) != exit_of(other)
            ],
            "tokens_per_second": {
                "llama_server": round(sum(one.total_tokens for one in found) / seconds, 1),
                "transformers": round(
                    sum(one.total_tokens for one in wanted) / reference_seconds, 1
                ),
            },
            **late,
        },
    )


def exit_of(decoded: Decoded) -> tuple[int, str]:
    return decoded.thinking_tokens, decoded.reason


def progress(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
