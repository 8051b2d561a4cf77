"""Tokens that were written before, scored by a server in one prefill: nothing is written anew.

vLLM gives ``prompt_logprobs``, SGLang and others ``echo`` a prompt with its log-probabilities.
llama-server and servers without token ids give neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.asking import ask_once
from rlbudget.models.completions import Prompt, Token
from rlbudget.models.messages import Scored, ScoredChoice, listed_tokens
from rlbudget.models.served import Server
from rlbudget.models.served_write import Spent, patiently
from rlbudget.models.wire import room_for


def can_score(server: Server) -> bool:
    """Whether a server may be asked: it takes ids and lists log-probabilities."""
    return server.by_ids and server.top > 0 and server.found.kind != "llama-server"


async def score(
    server: Server,
    prompt: Prompt,
    ids: Sequence[int],
    *,
    rank: tuple[int, ...] = (0,),
    spent: Spent | None = None,
) -> tuple[Token, ...] | None:
    """The tokens ``ids`` after a prompt, each with what the server lists of its place; None where
    it does not list any.

    Raises ``UserError`` where the request is refused, ``ServerError`` where the server's patience
    ends.
    """
    whole = [*prompt.ids, *ids]
    body: dict[str, Any] = {
        **server.fields, "prompt": whole, "max_tokens": 1, "n": 1, "stream": False,
        "temperature": 0.0,
    }  # fmt: skip
    if server.found.kind == "vllm":
        body = {name: value for name, value in body.items() if name != "logprobs"}
        body["prompt_logprobs"] = server.top
    else:
        body["echo"] = True

    async def once() -> ScoredChoice | None:
        try:
            said = await ask_once(
                server.endpoint, Scored, "completions", body,
                most=room_for(len(whole) + 1, server.top),
            )  # fmt: skip
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise server.endpoint.site.fault(error, sent=True) from None
        server.endpoint.site.check_error(said.error)
        return said.choices[0] if said.choices else None

    choice = await patiently(server, once, server.patience, rank=rank, spent=spent)
    if spent is not None:
        spent.requests += 1
        spent.sent += len(whole)
    return None if choice is None else _read(server, choice, len(prompt.ids), ids)


def _read(
    server: Server, choice: ScoredChoice, begin: int, ids: Sequence[int]
) -> tuple[Token, ...] | None:
    found: list[Token] = []
    if choice.prompt_logprobs is not None:
        for token, entry in zip(ids, choice.prompt_logprobs[begin:], strict=False):
            listed = {
                int(name): one.logprob
                for name, one in (entry or {}).items()
                if name.isdecimal() and one.logprob is not None
            }
            top = sorted(listed.items(), key=lambda one: -one[1])[: server.top]
            found.append(Token(token, "", listed.get(token), tuple(top)))
    else:
        each = listed_tokens(choice)[begin:]
        for token, one in zip(ids, each, strict=False):
            likely = tuple((server.spelling.id(key), value) for key, value in one.top)
            found.append(Token(token, "", one.logprob, likely))
    return tuple(found) if len(found) == len(ids) else None
