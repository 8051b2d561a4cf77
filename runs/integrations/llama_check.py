"""The conformance suite (``suite.py``) on a real llama-server: does it exit there too?

    runs/integrations/llama_server.sh
    python -m runs.integrations.llama_check [--n 100]

The SmolLM2 reasoner is converted to f32 in a temporary file, the server started with a cache in
f32. Asked by the server's own client and by that of OpenAI-compatible servers: under
``plan_top.toml``, for which 20 probabilities a token do, on all questions; under ``plan.toml``,
which needs all 49,152 of them, by the first on a tenth, since that is slow. The control route is
tried with the first on a tenth of the questions, unless ``--no-control``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations.llama_server import Server, ServerError, connect, decode, decode_chat
from rlbudget.models.smollm2 import smollm2_folder
from runs.integrations.llama_process import llama_server
from runs.integrations.suite import Suite, keep, load_suite, others, row_of
from runs.integrations.suite_client import check_client
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
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        write_gguf(folder, file)
        with llama_server(file, context=1024, threads=arguments.threads) as address:
            suite = load_suite("plan_top").first(arguments.n)
            every = load_suite("plan").first(max(arguments.n // 10, 1))
            check_client("OpenAI client, llama-server", f"{address}/v1", folder, suite, at_once=1)
            rows, differences, engine = [], {}, "llama-server"
            for one, control in ((suite, not arguments.no_control), (every, False)):
                decodes, late = by_own_client(address, folder, one, control=control)
                found = exits(decodes)
                rows.append(row_of(engine, found, one))
                differences[one.name] = {"others": others(found, one), **late}
                keep(engine, rows, differences=differences)


def by_own_client(
    address: str, folder: Path, suite: Suite, *, control: bool
) -> tuple[list[Decoded], dict[str, Any]]:
    """The decodes, and what is to be said of the control route."""
    with connect(address, suite.plan, folder) as server:
        started = time.perf_counter()
        found = []
        for at, asked in enumerate(suite.requests, 1):
            found.append(decode(server, asked.question, task=asked.task, metadata=asked.metadata))
            progress(f"llama-server, {suite.name} {at}/{len(suite.requests)}")
        seconds = time.perf_counter() - started
        questions = [asked.question for asked in suite.requests[::10]]
        late = late_tokens(server, questions) if control else {}
        speed = round(sum(one.total_tokens for one in found) / seconds, 1)
        return found, {"tokens_per_second": speed, **late}


def exits(found: Sequence[Decoded]) -> list[list[Any]]:
    """As those of a ``Suite``."""
    return [[one.thinking_tokens, one.reason] for one in found]


def late_tokens(server: Server, questions: Sequence[str]) -> dict[str, Any]:
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


def progress(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
