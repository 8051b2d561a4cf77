"""openai-python and LiteLLM as clients: do they get the same from the gateway as without it?

    bash runs/serve/clients.sh llama-server|vLLM

Each runs in an environment of its own, against a real server of the SmolLM2 reasoner on loopback
and against ``rlbudget serve`` before it with the policy off: chats, streams, the stream helper,
completions, models, responses, tools, errors. Every field is compared, log-probabilities too, but
for those that name one request or tell its time. How many tokens come in one event of a stream is a
matter of the server's load: neighbours that differ in their texts alone are compared as one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

from runs.common import KEPT, ROOT, row, write_part
from runs.serve.peers import scratch, serving
from runs.serve.real_servers import SERVERS, real_server

_TEXTS = frozenset({"content", "reasoning", "reasoning_content", "text", "delta"})
"""fields of an event whose texts make up the answer"""

CLIENTS = {"openai-python": (".venv-openai", "runs.serve.client_openai"),
           "LiteLLM": (".venv-litellm", "runs.serve.client_litellm")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("server", choices=SERVERS)
    args = parser.parse_args()
    rows, details = [], {}
    with scratch() as folder, real_server(args.server, folder) as url:
        plan = folder / "plan.toml"
        plan.write_text(f'policy = "{(KEPT / "policy_top").resolve()}"\n')
        with serving(plan, url, folder) as gateway:
            model = model_at(url)
            for name in CLIENTS:
                bare, behind = (said_by(name, address, model) for address in (url, gateway.url))
                same, others = compared(bare["found"], behind["found"])
                rows.append(row(f"{name} against gateway and bare {args.server}, policy off",
                                "the same, token for token",
                                f"{len(same)} of {len(bare['found'])} kinds of calls",
                                not others))  # fmt: skip
                details[name] = {"version": bare["version"], "same": same, "others": others,
                                 "errors": errors(bare["found"])}  # fmt: skip
    write_part("gateway", f"clients, {args.server}", rows, clients=details)


def model_at(url: str) -> str:
    """The first that a server lists."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def said_by(name: str, url: str, model: str) -> dict[str, Any]:
    """What one client got."""
    venv, script = CLIENTS[name]
    command = [str(ROOT / venv / "bin" / "python"), "-m", script, url, model]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800,
                          cwd=ROOT)  # fmt: skip
    if made.returncode:
        raise SystemExit(f"{name} failed:\n{made.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def compared(bare: dict[str, Any], behind: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The calls that gave the same, and the first difference of each other one."""
    first = {n: difference(whole(bare[n]), whole(behind[n]), "") for n in bare}
    return ([name for name, found in first.items() if found is None],
            {name: found for name, found in first.items() if found is not None})  # fmt: skip


def whole(value: Any) -> Any:
    """The same, neighbouring events of a stream made one."""
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for one in map(whole, value):
        joined = together(found[-1], one) if found and isinstance(one, dict) else None
        found[-1:] = [joined] if joined is not None else [*found[-1:], one]
    return found


def together(one: Any, other: Any, name: str = "") -> Any:
    """Two events as one; None where they differ in more than their texts."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = {key: together(one[key], other[key], key) for key in one}
        same = all(parts[key] is not None or one[key] is other[key] is None for key in one)
        return parts if same else None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [together(a, b, name) for a, b in zip(one, other, strict=True)]
        return pairs if None not in pairs else None
    if name in _TEXTS and isinstance(one, str) and isinstance(other, str):
        return one + other
    return one if one == other else None


def difference(one: Any, other: Any, where: str) -> str | None:
    """Where two values differ first; None where they do not."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = ((one[name], other[name], f"{where}.{name}") for name in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = ((a, b, f"{where}.{n}") for n, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        return None if one == other else f"{where}: {str(one)[:150]} | {str(other)[:150]}"
    return next((found for part in parts if (found := difference(*part)) is not None), None)


def errors(found: dict[str, Any]) -> dict[str, Any]:
    """The calls that the bare server does not answer, for they compare little."""
    return {name: one for name, one in found.items() if isinstance(one, dict) and "error" in one}


if __name__ == "__main__":
    main()
