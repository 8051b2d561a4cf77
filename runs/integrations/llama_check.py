"""The conformance suite (``conformance.py``) on a real llama-server: does it exit there too?

    runs/integrations/llama_server.sh
    python -m runs.integrations.llama_check [--n 100]

The SmolLM2 reasoner is converted to f32 in a temporary file, the server started with a cache in
f32. ``policy_top`` asks for 20 probabilities a token and is tried on all questions; ``policy``
asks for all 49,152 of them, which is slow, and is tried on a tenth. The control route is tried with
the first on a tenth of the questions, unless ``--no-control``. Writes
``runs/results/llama_check.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations.llama_server import Server, ServerError, connect, decode, decode_chat
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.policy.folder import Policy, load_policy
from runs.common import KEPT, write_result
from runs.integrations.conformance import Reference, conforms, load_reference
from runs.integrations.llama_process import llama_server
from runs.models.smol_gguf import write_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    parser.add_argument("--threads", type=int, default=2, help="of the server (default: 2)")
    parser.add_argument("--no-control", action="store_true", help="leave the control route out")
    arguments = parser.parse_args()
    try:
        check(arguments)
    except (UserError, ServerError) as error:
        sys.exit(f"error: {error}")


def check(arguments: argparse.Namespace) -> None:
    folder = smollm2_folder()
    rows, details = [], {}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        write_gguf(folder, file)
        with llama_server(file, context=1024, threads=arguments.threads) as address:
            for name, n in (("policy_top", arguments.n), ("policy", arguments.n // 10)):
                suite, policy = load_reference(name), load_policy(KEPT / name)
                questions = suite.questions[:n]
                with connect(address, policy, folder, token_price=suite.token_price) as server:
                    started = time.perf_counter()
                    found = []
                    for at, question in enumerate(questions, 1):
                        found.append(decode(server, question))
                        progress(f"llama-server, {name} {at}/{n}")
                    seconds = time.perf_counter() - started
                    slow = name == "policy"  # the stream lags so far that there is nothing to end
                    late = {} if arguments.no_control or slow else control(server, questions[::10])
                    exits = [[one.thinking_tokens, one.reason] for one in found]
                    rows.append(conforms("llama-server", exits, suite))
                    details[name] = about(found, exits, suite, server, policy, seconds) | late
    write_result("llama_check", rows, details=details)


def control(server: Server, questions: list[str]) -> dict[str, Any]:
    """How late a control request is obeyed, or why the route is closed."""
    try:
        found = [decode_chat(server, question) for question in questions]
    except ServerError as error:
        return {"control": str(error)}
    if not any(one.stopped for one in found) and (said := {one.message for one in found} - {None}):
        return {"control": min(map(str, said))}
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


def about(
    found: list[Decoded],
    exits: list[list[Any]],
    suite: Reference,
    server: Server,
    policy: Policy,
    seconds: float,
) -> dict[str, Any]:
    return {
        "token_price": suite.token_price,
        "signals": sorted({feature.partition(".")[0] for feature in policy.features}),
        "probabilities_a_token": server.n_probs,
        "stopped_by_the_policy": sum(one.stopped for one in found),
        "other_exits": [
            [one, other] for one, other in zip(exits, suite.exits, strict=False) if one != other
        ],
        "tokens_per_second": round(sum(one.total_tokens for one in found) / seconds, 1),
    }


def progress(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
