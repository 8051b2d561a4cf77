"""Streams of an OpenAI-compatible ``/completions``: chunks in, tokens out, faults survived.

Servers write log-probabilities in two ways: parallel lists (vLLM, SGLang), or one object a token
with its id (llama-server). Some send no ids, or none for tokens that end inside a character: these
are found by tokenising the text of the chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rlbudget.errors import UserError
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.models.wire import BROKEN, Events, Patience, ServerError, Site, dumps, httpx

_ID = "token_id:"
_PART = "\ufffd"
"""How a part of a character reads."""
_ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})


class Listed(NamedTuple):
    """What a server lists of one token."""

    key: int | str | None
    """its id, or its text where there is no id"""
    name: str
    logprob: float | None
    """nats; None where there is none"""
    top: tuple[tuple[int | str | None, float], ...]
    """(key, nats) of the likeliest tokens"""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a stream."""

    id: int
    text: str
    """what it adds to the text; empty inside a character"""
    logprob: float | None = None
    """nats; None where the server gives none"""
    top: tuple[tuple[int | None, float], ...] = ()
    """(id, nats) of the likeliest tokens"""
    end: bool = False
    """whether it ends the sequence"""


@dataclass(slots=True)
class Prompt:
    """What the model has read and written so far, as ids and as text; only one is sent."""

    ids: list[int]
    text: str
    by_ids: bool

    @property
    def body(self) -> list[int] | str:
        """As the server takes it."""
        return self.ids if self.by_ids else self.text

    def add(self, ids: Sequence[int], text: str) -> None:
        """Go on."""
        self.ids += ids
        self.text += text


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a server's tokens are found in a vocabulary, and which of them end a sequence."""

    vocabulary: Vocabulary
    ends: frozenset[int]
    """known to end a sequence"""
    special: frozenset[int]
    """can end one, although no configuration tells"""
    ids_of: Mapping[str, int]
    """token texts, where the server names tokens by them"""

    def id(self, key: int | str | None) -> int | None:
        """The id of a listed token, None where its name is not the text of one."""
        if isinstance(key, str):
            key = self.ids_of.get(key)
        if key is not None and not 0 <= key < len(self.vocabulary.markers):
            raise UserError(
                f"the server's token {key} is not one of the tokenizer's: name the tokenizer of the"
                " served model"
            )
        return key

    def ids(self, text: str) -> list[int]:
        """The ids of a part of a text."""
        tokenizer = self.vocabulary.tokenizer
        ids = trusted_ids(tokenizer, text)
        if len(ids) > 1 and text[:1] != " " and tokenizer.convert_ids_to_tokens(ids[0]) == "\u2581":
            return ids[1:]  # SentencePiece puts a space before any text
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.vocabulary.text(ids, special=True)

    def may_end(self, token: int, text: str | None = None) -> bool:
        """Whether the server can mean an end by it.

        ``text`` is the token's as the server shows it: servers leave that of an end out.
        """
        if token in self.ends or token in self.special:
            return True
        return text == "" and _PART not in (own := self.text([token])) and bool(own)


def spelling_of(vocabulary: Vocabulary, *, by_text: bool = False) -> Spelling:
    """``by_text`` says that the server may name tokens by their text."""
    tokenizer = vocabulary.tokenizer
    ours = {*vocabulary.end_first_ids.tolist(), *vocabulary.exit_ids}
    special = frozenset(tokenizer.all_special_ids) - ours
    ids_of: dict[str, int] = {}
    if by_text:
        ids = [*tokenizer.all_special_ids, *range(len(tokenizer))]
        texts = tokenizer.batch_decode(
            [[token] for token in ids],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        pieces = tokenizer.convert_ids_to_tokens(ids)
        for token, text, piece in zip(ids, texts, pieces, strict=True):
            # SentencePiece leaves out the space before a text that is decoded alone.
            spaced = (
                text if not (piece or "").startswith("\u2581") else piece.replace("\u2581", " ")
            )
            if text.strip() or spaced:
                ids_of.setdefault(spaced, token)
    return Spelling(vocabulary, frozenset(vocabulary.eos_ids.tolist()), special, ids_of)


class Reader:
    """Reads the chunks of one request."""

    __slots__ = ("_ended", "_held", "_least", "_open", "_read", "_spelling", "_usage", "_waiting",
                 "finish", "ids_given", "names_given")  # fmt: skip

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._held: list[Listed] = []  # inside a character, of unknown ids
        self._open: list[int] = []  # inside a character
        self._waiting: list[Token] = []  # the next chunk says whether it was the end
        self._ended = False
        self._read = self._least = 0
        self._usage: int | None = None
        self.finish: str | None = None
        """``stop`` at an end of sequence, another word at another end"""
        self.ids_given = False
        self.names_given = False

    @property
    def paid(self) -> int:
        """Tokens that the server made, as far as it tells."""
        exact = self._ended and self._read == self._least
        if self._usage is not None and self._usage >= self._least and not exact:
            return self._usage
        return self._read + int(self.finish == "stop" and not self._ended)

    def take(self, chunk: Mapping[str, Any]) -> list[Token]:
        """The tokens of a chunk; ``ServerError`` where it says that the request was aborted."""
        used = (chunk.get("usage") or {}).get("completion_tokens")
        if isinstance(used, int):
            self._usage = used
        found = []
        for choice in chunk.get("choices") or ():
            found += self._take(choice)
        return found

    def _take(self, choice: Mapping[str, Any]) -> list[Token]:
        if self._ended:
            return []  # padding
        tokens = self._tokens(choice)
        ends = [place for place, token in enumerate(tokens) if token.end]
        if ends:
            tokens = tokens[: ends[0] + 1]
            self._least = min(self._least, self._read + len(tokens))
        self._read += len(tokens)
        tokens, self._waiting = [*self._waiting, *tokens], []
        said = choice.get("finish_reason")
        finish = str(said.get("type") if isinstance(said, dict) else said or "").lower()
        if finish in BROKEN and not ends:
            raise ServerError(f"the request was ended by the server ({finish})")
        if finish or ends:
            self.finish = "stop" if finish in _ENDED or ends else finish
        last = tokens[-1] if tokens else None
        if last is not None and not ends:
            told = next((choice[n] for n in ("stop_reason", "matched_stop") if n in choice), None)
            shown = self._spelling.may_end(last.id, last.text)
            if self.finish == "stop" and (told == last.id if isinstance(told, int) else shown):
                tokens[-1] = replace(last, end=True)
            elif self.finish is None and shown:
                self._waiting = [tokens.pop()]
        self._ended = bool(tokens) and tokens[-1].end
        return tokens

    def _tokens(self, choice: Mapping[str, Any]) -> list[Token]:
        text, given = choice.get("text") or "", choice.get("token_ids")
        listed = [*self._held, *listed_tokens(choice)]
        self._held = []
        self.ids_given |= bool(given) or any(isinstance(one.key, int) for one in listed)
        self.names_given |= any(isinstance(key, str) for one in listed for key, _ in one.top)
        keys = [self._spelling.id(one.key) for one in listed]
        known = [self._spelling.id(token) for token in given] if given else keys
        if None in known and not text:
            self._held = listed
            return []
        lost = (bool(text) and not known) or None in known
        ids = [token for token in known if token is not None]
        self._least += len(known) or bool(text)
        if not given and (self._lacks(ids, text) or lost):
            ids = self._spelling.ids(text)
            shift = len(listed) - len(ids)
            beside = aligned(ids, keys, listed, self._spelling) or [
                listed[max(place + shift, 0)] if listed else None for place in range(len(ids))
            ]
        else:
            beside = aligned(ids, keys, listed, self._spelling) or [None] * len(ids)
        texts = self._texts(ids, [one.name for one in listed], text)
        return [self._token(*each) for each in zip(ids, texts, beside, strict=True)]

    def _lacks(self, ids: list[int], text: str) -> bool:
        """Whether the text holds a character of which these ids spell only a part."""
        whole = self._spelling.text([*self._open, *ids])
        lacks = not self._open and _PART in whole and bool(text) and _PART not in text
        self._open = [] if text or not whole.endswith(_PART) else [*self._open, *ids]
        return lacks

    def _texts(self, ids: Sequence[int], names: Sequence[str], text: str) -> list[str]:
        """The chunk's text, dealt out to its tokens."""
        if len(ids) == 1:
            return [text]
        if len(ids) == len(names) and "".join(names) == text:
            return list(names)
        ends = [self._spelling.text(ids[: n + 1]) for n in range(len(ids))]
        ends = [end for end in ends if text.startswith(end)]
        if len(ends) == len(ids) and ends[-1] == text:
            starts = ["", *ends[:-1]]
            return [end[len(start) :] for start, end in zip(starts, ends, strict=True)]
        return [*[""] * (len(ids) - 1), text] if ids else []

    def _token(self, token: int, text: str, beside: Listed | None) -> Token:
        end = token in self._spelling.ends
        if beside is None:
            return Token(token, text, end=end)
        top = tuple(
            (self._spelling.ids_of.get(key) if isinstance(key, str) else key, value)
            for key, value in beside.top
        )
        return Token(token, text, beside.logprob, top, end)


@dataclass(slots=True)
class Endpoint:
    """``/completions`` of one server."""

    site: Site
    client: httpx.AsyncClient = field(repr=False)
    retries: int
    """faults that one decode survives"""
    waiting: float
    """seconds that one decode waits in all where the server asks for it"""
    tasks: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    @property
    def patience(self) -> Patience:
        """That of a fresh decode."""
        return Patience(self.retries, self.waiting)

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of one request.

        Raises ``UserError`` where the server refuses the request, ``ServerError`` where it, or
        the way to it, breaks down: also in the middle. The connection is read and closed in tasks
        of their own: httpx leaks one whose closing is cancelled, as a second cancel does.
        """
        blocks: asyncio.Queue[list[dict[str, Any]] | Exception] = asyncio.Queue()
        opened: list[httpx.Response] = []
        pump = self._start(self._pump(body, blocks, opened))
        try:
            while block := await blocks.get():
                if isinstance(block, Exception):
                    raise block
                for chunk in block:
                    self.site.check_event(chunk)
                    yield chunk
        finally:
            await asyncio.shield(self._start(_close(pump, opened)))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the loop alone does not keep it
        task.add_done_callback(self.tasks.discard)
        return task

    async def _pump(
        self,
        body: Mapping[str, Any],
        blocks: asyncio.Queue[list[dict[str, Any]] | Exception],
        opened: list[httpx.Response],
    ) -> None:
        """Put what arrives, block by block, and at the end an empty one or the error."""
        events = Events()
        try:
            content = dumps({**body, "stream": True, "n": 1})
            request = self.client.build_request("POST", "completions", content=content)
            response = await self.client.send(request, stream=True)
            opened.append(response)
            try:
                if response.status_code != 200:
                    await response.aread()
                self.site.check(response)
                async for data in response.aiter_bytes():
                    if found := list(events.feed(data)):
                        blocks.put_nowait(found)
                    if events.done:
                        break
            finally:
                await response.aclose()
            if found := list(events.close()):
                blocks.put_nowait(found)
            blocks.put_nowait([])
        except (UserError, ServerError) as error:
            blocks.put_nowait(error)
        except Exception as error:  # whatever it is, the reader must hear of it
            blocks.put_nowait(self.site.fault(error))


async def _close(pump: asyncio.Task[None], opened: Sequence[httpx.Response]) -> None:
    """Close a response at once, or take back the request where there is none yet."""
    if opened:
        await opened[0].aclose()
    else:
        pump.cancel()
    await asyncio.wait([pump])


@dataclass(slots=True)
class Stream:
    """One continuation of a prompt, asked for again from where it broke off."""

    endpoint: Endpoint
    spelling: Spelling
    prompt: Prompt
    max_tokens: int
    fields: Mapping[str, Any]
    patience: Patience
    """of the whole decode, shared by its streams"""
    finish: str | None = None
    """why the server ended it; None where the reader did"""
    readers: list[Reader] = field(default_factory=list)
    """one a request"""

    @property
    def paid(self) -> int:
        """Tokens that the server made: also those that came with the last one, after it."""
        return sum(reader.paid for reader in self.readers)

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Tokens, as they come. The reader adds to the prompt those it takes, one by one."""
        left = self.max_tokens
        while left > 0:
            self.readers.append(reader := Reader(self.spelling))
            body = {**self.fields, "prompt": self.prompt.body, "max_tokens": left}
            try:
                async with aclosing(self.endpoint.stream(body)) as chunks:
                    async for chunk in chunks:
                        for token in self._take(reader, chunk):
                            left -= 1
                            yield token
                if reader.finish is None:
                    raise ServerError(f"{self.endpoint.site.name}: the stream ended in the middle")
            except ServerError as error:
                if reader.finish is None and left > 0:
                    await asyncio.sleep(self.patience.pause(error))
                    continue
            self.finish = reader.finish or "length"
            return
        self.finish = "length"

    def _take(self, reader: Reader, chunk: Mapping[str, Any]) -> list[Token]:
        site = self.endpoint.site
        try:
            return reader.take(chunk)
        except UserError:
            raise
        except ServerError as error:
            raise ServerError(f"{site.name}: {error}") from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise site.fault(error) from None


def listed_tokens(choice: Mapping[str, Any]) -> list[Listed]:
    """What a chunk's choice lists, whichever way its server writes it."""
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):
        return [listed_token(item) for item in logprobs["content"]]
    names = logprobs.get("tokens") or []
    values = logprobs.get("token_logprobs") or [None] * len(names)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    return [
        Listed(_key(name), name, value, _likeliest((top or {}).items()))
        for name, value, top in zip(names, values, tops, strict=True)
    ]


def listed_token(item: Mapping[str, Any]) -> Listed:
    """What an object of llama-server lists of a token."""
    top = ((one.get("id", one.get("token")), one["logprob"]) for one in item["top_logprobs"] or ())
    name = item.get("token") or ""
    return Listed(item.get("id", _key(name)), name, item.get("logprob"), _likeliest(top))


def aligned(
    ids: Sequence[int],
    keys: Sequence[int | None],
    listed: Sequence[Listed],
    spelling: Spelling,
) -> list[Listed | None] | None:
    """What is listed beside each token; None where that cannot be known.

    ``keys`` are the ids of what is listed. Servers list nothing for a token that leaves a
    character unfinished: it shares what is listed of the next one, or of the last one.
    """
    if len(ids) == len(listed):
        return list(listed)
    found: list[Listed | None] = []
    place = 0
    for token in ids:
        if place < len(keys) and keys[place] == token:
            found.append(listed[place])
            place += 1
        else:
            shared = listed and _PART in spelling.text([token])
            found.append(listed[min(place, len(listed) - 1)] if shared else None)
    return found if place == len(listed) else None


def _likeliest(
    top: Iterable[tuple[int | str | None, float | None]],
) -> tuple[tuple[int | str | None, float], ...]:
    return tuple(
        (_key(key) if isinstance(key, str) else key, -float("inf") if value is None else value)
        for key, value in top
    )


def _key(name: str) -> int | str | None:
    """A token's id or text from the name it is listed under; None for a part of a character."""
    if name.startswith(_ID):
        return int(name[len(_ID) :])
    return None if _PART in name or name.startswith("bytes:") else name
