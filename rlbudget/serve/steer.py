"""One request on its way through an upstream, under a plan: tokens in, pieces of text out.

A shell around ``Request`` like every integration; other than a client of ours it lets the answer
go to its natural end, as the client's own limit allows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from rlbudget.decoding.aside import Fork, Wish
from rlbudget.decoding.core import HandOver
from rlbudget.decoding.request import Request, State
from rlbudget.errors import UserError
from rlbudget.integrations.openai import Server, fork, signals_of
from rlbudget.models.completions import Prompt, Stream, Token, let_end
from rlbudget.models.site import ServerError
from rlbudget.serve.second import handed_over
from rlbudget.serve.shown import Piece, Shown

_GREEDY: Mapping[str, Any] = {"temperature": 0.0}


class Steered:
    """A request that is decoded by an upstream as its plan says.

    ``limit`` caps thinking, exit text and answer together; ``fields`` are the client's own of
    every completion (temperature, seed, ...).
    """

    def __init__(
        self, server: Server, request: Request, prompt: Prompt, *, limit: int,
        fields: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.request = request
        self.prompt_tokens = len(prompt.ids)
        self.finish = "stop"
        """why it ended, in OpenAI's words"""
        self.beside = None
        self._server, self._prompt, self._limit = server, prompt, limit
        self._fields = fields
        self._patience = server.endpoint.patience
        self._shown = Shown(server.core, request)
        self._used = self._paid = 0
        self._over = self._exited = False

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes visible, as it does.

        Raises ``ServerError`` after too many faults of the upstream, ``UserError`` where it
        refuses the request.
        """
        request = self.request
        try:
            while not self._over and not request.settled:
                if request.forced() is not None:
                    if pieces := await self._exit():
                        yield pieces
                    continue
                async with aclosing(self._read()) as read:
                    async for pieces in read:
                        yield pieces
            request.finish()
            if rest := self._shown.rest():
                yield rest
        finally:
            request.finish()
            request.close(paid=self._paid)

    async def _exit(self) -> list[Piece]:
        """Force what is to be forced; nothing of it costs the upstream anything."""
        request = self.request
        self._exited = True
        found = self._shown.exit()
        text = self._server.core.profile.exit_text
        while not request.settled and (forced := request.forced()) is not None:
            self._prompt.add([forced], text)
            self._used += 1
            self._paid += 1
            wish = request.push(forced, text=None if self._server.by_ids else text)
            text = ""
            while wish is not None:
                wish = await self._settle(wish)
        return found

    async def _read(self) -> AsyncGenerator[list[Piece], None]:
        """Read one stream until it ends or something is to be done."""
        request = self.request
        left = self._limit - self._used
        if left <= 0:
            self._over, self.finish = True, "length"
            return
        thinking = request.thinking
        most = min(left, request.ahead) if thinking and request.ahead < request.room else left
        # An answer after an exit is greedy, as it was recorded.
        stream = self._stream(most, _GREEDY if self._exited else {})
        wish: Wish | None = None
        unseen = 0  # tokens that came with the last one, after it
        async with aclosing(stream.blocks()) as blocks:
            async for block in blocks:
                pieces: list[Piece] = []
                for place, token in enumerate(block, 1):
                    wish = self._push(token, pieces)
                    unseen = len(block) - place
                    if wish is not None or self._over or request.forced() is not None:
                        break
                if pieces:
                    yield pieces
                if wish is not None or self._over or request.forced() is not None:
                    break
            if self._over:
                await let_end(blocks)
        self._paid += stream.paid - unseen
        acted = wish is not None or request.forced() is not None
        while wish is not None:
            wish = await self._settle(wish)
        if acted or self._over or stream.finish is None:
            return
        if request.thinking:
            # The upstream ended the stream: at an end that it does not show, or for want of room.
            if stream.finish == "stop":
                request.gave_up()
            elif most >= left:
                request.cut()
            return
        if most >= left or stream.finish == "stop":
            self._over = True
            self.finish = "stop" if stream.finish == "stop" else "length"

    def _push(self, token: Token, pieces: list[Piece]) -> Wish | None:
        """Tell the request of a token; what becomes visible is added to ``pieces``."""
        request, server = self.request, self._server
        before = request.state
        if token.end and before is State.THINKING:
            request.gave_up()
            return None
        if token.end and token.id not in server.core.eos:
            self._over = True
            return None
        self._prompt.add((token.id,), token.text)
        self._used += 1
        signals = signals_of(server, token) if before is State.THINKING else None
        wish = request.push(token.id, signals, text=None if server.by_ids else token.text)
        self._over = token.end
        pieces += self._shown.pushed(before, token.text, end=token.end)
        return wish

    def _stream(self, max_tokens: int, fields: Mapping[str, Any]) -> Stream:
        server = self._server
        every = {**server.fields, **self._fields, **fields}
        return Stream(
            server.endpoint, server.spelling, self._prompt, max_tokens, every, self._patience
        )

    async def _settle(self, wish: Wish) -> Wish | None:
        """Do what the request wants done aside; its next wish."""
        request, core = self.request, self._server.core
        if isinstance(wish, HandOver):
            return request.handed_over(await handed_over(core, wish))
        if not isinstance(wish, Fork):
            return request.forked(UserError("no options are read here"))
        try:
            found = await fork(self._server, self._prompt, wish, self._patience)
        except (ServerError, UserError) as error:  # the decode goes on without it
            return request.forked(error)
        return request.forked(found)
