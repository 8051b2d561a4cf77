"""What openai-python gets from a server, as JSON; runs in an environment of its own.

    python -m runs.serve.client_openai URL MODEL

Fields that differ from one request to the next (id, time) are left out. Started by ``clients.py``,
against the gateway and against the server behind it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai

QUESTIONS = ("Solve for w: 7*w - 7 = 49", "Please add 12, 30 and 7.")
OFF = {"x-rlbudget-off": "true"}
"""A header, which other servers do not mind."""
DIFFERS = frozenset({"id", "created", "created_at", "completed_at", "timings", "request_id",
                     "metrics", "system_fingerprint", "item_id", "sequence_number",
                     "prompt_tokens_details",
                     "input_tokens_details", "kv_transfer_params"})  # fmt: skip
"""Fields that name one request, or say how long it took or what was cached."""


def main() -> None:
    url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=url, api_key="none", default_headers=OFF, max_retries=0)
    found = {name: answer(call, client, model) for name, call in CALLS.items()}
    print(json.dumps({"version": openai.__version__, "found": found}))


def answer(call: Callable[..., Any], client: openai.OpenAI, model: str) -> Any:
    """What a call gives, or the kind and the status of its error."""
    try:
        return plain(call(client, model))
    except openai.APIStatusError as error:
        return {"error": type(error).__name__, "status": error.status_code}
    except Exception as error:  # what a client meets is what is compared
        return {"error": type(error).__name__, "said": str(error)[:200]}


def plain(value: Any) -> Any:
    """Without what differs from one request to the next."""
    if isinstance(value, openai.BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if name not in DIFFERS}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def chat(client: Any, model: str) -> Any:
    return [
        client.chat.completions.create(
            model=model, messages=asked(q), temperature=0, max_tokens=200, logprobs=True,
            top_logprobs=2,
        )
        for q in QUESTIONS
    ]  # fmt: skip


def stream(client: Any, model: str) -> Any:
    return [
        list(client.chat.completions.create(
            model=model, messages=asked(q), temperature=0, max_tokens=200, stream=True,
            stream_options={"include_usage": True},
        ))
        for q in QUESTIONS
    ]  # fmt: skip


def helper(client: Any, model: str) -> Any:
    """The helper raises where a stream ends for want of room."""
    with client.chat.completions.stream(
        model=model, messages=asked(QUESTIONS[0]), temperature=0, max_tokens=600
    ) as events:
        kinds = list(dict.fromkeys(event.type for event in events))
        return [kinds, events.get_final_completion()]


def completions(client: Any, model: str) -> Any:
    return client.completions.create(
        model=model, prompt=QUESTIONS[0], temperature=0, max_tokens=60, logprobs=2
    )


def completions_stream(client: Any, model: str) -> Any:
    return list(client.completions.create(
        model=model, prompt=QUESTIONS[1], temperature=0, max_tokens=60, stream=True
    ))  # fmt: skip


def several(client: Any, model: str) -> Any:
    return client.chat.completions.create(
        model=model, messages=asked(QUESTIONS[1]), temperature=0, max_tokens=40, n=2
    )


def tools(client: Any, model: str) -> Any:
    tool = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "adds",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    return client.chat.completions.create(
        model=model, messages=asked(QUESTIONS[1]), temperature=0, max_tokens=60, tools=[tool],
        tool_choice="auto",
    )  # fmt: skip


def models(client: Any, model: str) -> Any:
    return client.models.list().data


def responses(client: Any, model: str) -> Any:
    return client.responses.create(model=model, input=QUESTIONS[0], temperature=0,
                                   max_output_tokens=60)  # fmt: skip


def responses_stream(client: Any, model: str) -> Any:
    return list(client.responses.create(model=model, input=QUESTIONS[0], temperature=0,
                                        max_output_tokens=60, stream=True))  # fmt: skip


def wrong_type(client: Any, model: str) -> Any:
    return client.chat.completions.create(model=model, messages="no messages", max_tokens=5)


def no_messages(client: Any, model: str) -> Any:
    return client.chat.completions.create(model=model, messages=[], temperature=0, max_tokens=5)


def no_route(client: Any, model: str) -> Any:
    return client.get("/nonsense", cast_to=object)


CALLS: dict[str, Callable[[Any, str], Any]] = {
    "chat": chat,
    "stream": stream,
    "stream helper": helper,
    "completions": completions,
    "completions, streamed": completions_stream,
    "n = 2": several,
    "tools": tools,
    "models": models,
    "responses": responses,
    "responses, streamed": responses_stream,
    "error: messages of a wrong type": wrong_type,
    "error: no messages": no_messages,
    "error: no such route": no_route,
}


if __name__ == "__main__":
    main()
