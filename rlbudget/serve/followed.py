"""One request whose thinking the engine itself ends: its tokens are followed, not steered.

Where and why it ended is read off the tokens: an exit text at a checkpoint is the policy's, at the
cap the cap's, after a repetition the loop's, anywhere else the model's own end. Where the exit text
is nothing but the end of the thinking, a model that ends by itself right at a checkpoint looks
like a stop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request, State
from rlbudget.decoding.wanted import Wanted
from rlbudget.integrations.openai import Server
from rlbudget.models.completions import Prompt, Stream, Token, let_end
from rlbudget.policy.controller import Reason
from rlbudget.policy.dial import Dial
from rlbudget.policy.stop_policy import Full
from rlbudget.serve.engine import OFF, XARGS, with_xargs
from rlbudget.serve.shown import Piece, Shown
from rlbudget.serve.store.part import Both
from rlbudget.signals.loops import Loops
from rlbudget.strategies.feedback.log import DecisionLog, Log, LoggedRequest
from rlbudget.strategies.plan import Plan
from rlbudget.traces.trace import Trace

_NO_CAP = 1 << 30


@dataclass(frozen=True, slots=True)
class _Noted:
    """The gateway's store, told which plan the engine decided by; the engine keeps its own log."""

    plan: Plan
    effort: str | None
    to: Log

    @property
    def store_text(self) -> bool:
        """As the store."""
        return self.to.store_text

    @property
    def failures(self) -> int:
        """As the store's."""
        return self.to.failures

    def decision(self, served: LoggedRequest) -> None:
        """Note a request of the engine's."""
        plan, versions = self.plan, self.plan.versions
        self.to.decision(
            replace(
                served, policy=plan.fingerprint, effort=self.effort,
                strategy=None if plan.plain else plan.digest,
                registry_version=next(iter(versions.values())) if len(versions) == 1 else None,
            )
        )  # fmt: skip

    def audit(self, trace: Trace) -> None:
        """No engine audits."""


def following(core: Core, effort: str | None = None) -> Core:
    """A core whose requests are decided about by nobody here."""
    log = core.log.store if isinstance(core.log, Both) else core.log
    noted = None if log is None or isinstance(log, DecisionLog) else _Noted(core.plan, effort, log)
    return replace(core, plan=Plan({"policy": Full()}, loops=False), composed=None, log=noted,
                   max_thinking=_NO_CAP)  # fmt: skip


class Followed:
    """A request that the engine decodes and cuts; ``limit`` caps all of its tokens, ``xargs`` tell
    its processor what is wanted."""  # fmt: skip

    def __init__(
        self, server: Server, core: Core, wanted: Wanted, prompt: Prompt, *, limit: int,
        fields: Mapping[str, Any], xargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        spot = core.spot(wanted.dial)
        self.request = Request(
            following(core, wanted.dial.effort), prompt=prompt.ids,
            dial=Dial(token_price=spot.token_price), **(wanted.said or {}),
        )  # fmt: skip
        self.prompt_tokens = len(prompt.ids)
        self.finish = "stop"
        """why it ended, in OpenAI's words"""
        self.beside = None
        self._server, self._core, self._prompt, self._limit = server, core, prompt, limit
        self._cap = core.thinking_cap(spot, of_request=wanted.thinking_budget, of_engine=limit)
        self._fields = with_xargs({**server.fields, **fields}, xargs)
        self._off = with_xargs(self._fields, OFF)[XARGS]
        self._shown = Shown(core, self.request)
        self._loops = Loops() if core.plan.loops else None
        self._looped = self._over = False
        self._held: list[Token] = []
        """tokens with which an exit text may begin"""
        self._used = self._from = 0  # tokens so far, and thinking tokens when it was last asked

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes visible, as it does; raises as ``Steered.pieces``."""
        request = self.request
        stream = Stream(
            self._server.endpoint, self._server.spelling, self._prompt, self._limit, self._fields,
            self._server.endpoint.patience,
        )  # fmt: skip
        asked = 1
        try:
            async with aclosing(stream.blocks()) as blocks:
                async for block in blocks:
                    if len(stream.readers) > asked:  # it broke off, and the engine began anew
                        asked, self._from = len(stream.readers), request.ending.thinking_tokens
                    pieces: list[Piece] = []
                    for token in block:
                        self._push(token, pieces)
                        if self._over:
                            break
                    if not request.thinking or self._limit - self._used <= self._core.reserve:
                        self._fields[XARGS] = self._off
                    if pieces:
                        yield pieces
                    if self._over:
                        break
                if self._over:
                    await let_end(blocks)
            pieces = []
            self._release(pieces)
            if not self._over and stream.finish != "stop":
                self.finish = "length"
                request.cut()
            if pieces:
                yield pieces
        finally:
            request.finish()
            request.close(paid=stream.paid)

    def _push(self, token: Token, pieces: list[Piece]) -> None:
        self._prompt.add((token.id,), token.text)
        self._used += 1
        if not self.request.thinking:
            self._take(token, pieces)
            return
        self._held.append(token)
        exit_ids = self._core.vocabulary.exit_ids
        while self._held:
            ids = tuple(one.id for one in self._held)
            if ids == tuple(exit_ids):
                self._exited(pieces)
                return
            if self.request.thinking and ids == tuple(exit_ids[: len(ids)]):
                return
            self._take(self._held.pop(0), pieces)

    def _exited(self, pieces: list[Piece]) -> None:
        """All of the exit text is there: why, and what of it is seen."""
        held, self._held = self._held, []
        reason = self._reason()
        if reason is None:  # the model's own end, spelled as the exit text
            for token in held:
                self._take(token, pieces)
            return
        self.request.ended_by(reason)
        pieces += self._shown.exit()
        for token in held:
            self.request.push(token.id)

    def _reason(self) -> Reason | None:
        thinking = self.request.ending.thinking_tokens
        since = thinking - self._from
        if self._looped:
            return "loop"
        if since >= self._cap:
            return "max_tokens"
        if since and since % self._core.stride == 0:
            return "policy"
        tag = self._core.profile.end_of_thinking
        return None if self._core.profile.exit_text == tag else "natural"

    def _release(self, pieces: list[Piece]) -> None:
        held, self._held = self._held, []
        for token in held:
            self._take(token, pieces)

    def _take(self, token: Token, pieces: list[Piece]) -> None:
        """A token that is what it looks like."""
        request = self.request
        before = request.state
        if token.end and (before is State.THINKING or token.id not in self._core.eos):
            self._over = True
            if before is State.THINKING:
                request.gave_up()
            return
        request.push(token.id, text=None if self._server.by_ids else token.text)
        self._over = token.end
        if before is State.THINKING and request.thinking and self._loops is not None:
            self._looped = self._looped or bool(self._loops.push(token.id))
        pieces += self._shown.pushed(before, token.text, end=token.end)
