"""What LiteLLM as a library gets from a server, as JSON; runs in an environment of its own.

    python -m runs.serve.client_litellm URL MODEL

As ``client_openai.py``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import litellm

QUESTIONS = ("Solve for w: 7*w - 7 = 49", "Please add 12, 30 and 7.")
OFF = {"x-rlbudget-off": "true"}
DIFFERS = frozenset({"id", "created", "timings", "system_fingerprint", "prompt_tokens_details",
                     "citations", "kv_transfer_params"})  # fmt: skip


def main() -> None:
    url, model = sys.argv[1:]
    said = {"api_base": url, "api_key": "none", "extra_headers": OFF, "num_retries": 0}
    chat = said | {"model": f"openai/{model}", "temperature": 0, "max_tokens": 200}
    text = said | {"model": f"text-completion-openai/{model}", "temperature": 0, "max_tokens": 60}
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    calls: dict[str, Callable[[], Any]] = {
        "chat": lambda: [litellm.completion(messages=one, **chat) for one in asked],
        "stream": lambda: [
            list(litellm.completion(messages=one, stream=True, **chat)) for one in asked
        ],
        "asynchronous": lambda: asyncio.run(litellm.acompletion(messages=asked[0], **chat)),
        "text": lambda: litellm.text_completion(prompt=QUESTIONS[0], **text),
        "error: no messages": lambda: litellm.completion(messages=[], **chat),
    }
    found = {name: answer(call) for name, call in calls.items()}
    print(json.dumps({"version": version("litellm"), "found": found}))


def answer(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind and the status of its error."""
    try:
        return plain(call())
    except Exception as error:  # what a client meets is what is compared
        return {"error": type(error).__name__, "status": getattr(error, "status_code", None)}


def plain(value: Any) -> Any:
    """Without what differs from one request to the next."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if name not in DIFFERS}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


if __name__ == "__main__":
    main()
