"""What vLLM prints of its requests (``--enable-log-requests --enable-log-outputs``, log level
DEBUG): the prompt and the output of one request are joined by its id."""  # fmt: skip

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from rlbudget.tasks.lines import open_text
from rlbudget.tasks.rows import BadRowError, Row

_ASKED = re.compile(
    r"(?:Request (?P<id>\S+) details|Received request (?P<old>\S+)): prompt: (?P<rest>['\"].*)"
)
_WRITTEN = re.compile(
    r"Generated response (?P<id>\S+?)(?: \(streaming complete\))?: output: (?P<rest>['\"].*)"
)
_FINISH = re.compile(r"finish_reason: (\w+)\s*$")


def printed_rows(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    """A row for each response: ``id``, ``prompt`` under the model's template, ``completion``.

    A response whose prompt was not printed is a bad row. Raises ``UserError`` as
    ``lines.open_text`` does.
    """
    prompts: dict[str, str] = {}
    with open_text(path) as source:
        for number, content in enumerate(source, 1):
            line = content.decode("utf-8", "replace").rstrip("\r\n")
            place = f"{path}:{number}"
            if asked := _ASKED.search(line):
                name = asked["id"] or asked["old"]
                if (prompt := _literal(asked["rest"])) is not None:
                    prompts[name] = prompt
            elif written := _WRITTEN.search(line):
                yield place, _row(written["id"], written["rest"], prompts)


def _row(name: str, rest: str, prompts: dict[str, str]) -> Row | BadRowError:
    # Requests of several prompts or samples are numbered behind their id.
    prompt = prompts.get(name) or prompts.get(f"{name}-0")
    if prompt is None:
        return BadRowError(
            f"the prompt of the request {name} was not printed: start vLLM with"
            " --enable-log-requests and the log level DEBUG"
        )
    completion = _literal(rest)
    if completion is None:
        return BadRowError(f"the output of the request {name} is cut (--max-log-len)")
    finish = _FINISH.search(rest)
    return {
        "id": name,
        "prompt": prompt,
        "rendered": True,
        "completion": completion,
        "finish_reason": finish[1] if finish else None,
    }


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def _literal(rest: str) -> str | None:
    """The text that a line goes on with, as Python wrote it; None for what is none."""
    found = _QUOTED.match(rest)
    if found is None:
        return None
    try:
        text = ast.literal_eval(found[0])
    except (ValueError, SyntaxError):
        return None
    return str(text)
