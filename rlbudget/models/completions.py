"""Streams of an OpenAI-compatible ``/completions``: chunks in, tokens out, faults survived.

Servers write log-probabilities in two ways: parallel lists (vLLM, SGLang), or one object a token
with its id (llama-server). Some send no ids, or none for tokens that end inside a character: these
are found by tokenising the text of the chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlbudget.errors import UserError
from rlbudget.models.messages import PART, Choice, Chunk, Listed, listed_tokens
from rlbudget.models.patience import Clock, Patience
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.site import ServerError
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.models.wire import BROKEN, Endpoint, room_for

_CHARACTER = 16
"""Entries that may wait for the rest of a character, and tokens beyond those asked for."""
_APART = 256
"""Tokens of a chunk whose texts are found by decoding its beginnings."""
_GOODBYE = 0.05
"""Seconds that a stream may take to end after its last token."""
_ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})


class Token(NamedTuple):
    """One token of a stream."""

    id: int
    text: str
    """what it adds to the text; empty inside a character"""
    logprob: float | None = None
    """nats; None where the server gives none"""
    top: tuple[tuple[int | None, float], ...] = ()
    """(id, nats) of the likeliest tokens; empty where it is not read which they are"""
    end: bool = False
    """whether it ends the sequence"""
    nats: tuple[float, ...] = ()
    """of the likeliest tokens, in any order, where it is not read which they are"""

    @property
    def best(self) -> list[float]:
        """Nats of the likeliest tokens, falling."""
        return sorted(self.nats or (value for _, value in self.top), reverse=True)


@dataclass(slots=True)
class Prompt:
    """What the model has read and written so far, as ids and as text; only one is sent.

    The text is not kept where ids are sent.
    """

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
        if not self.by_ids:
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
    likeliest: bool = True
    """whether it is read which tokens are the likeliest ones, beside how likely they are"""

    def id(self, key: int | str | None) -> int | None:
        """The id of a listed token, None where its name is not the text of one."""
        if isinstance(key, str):
            key = self.ids_of.get(key)
        return None if key is None else self.known(key)

    def known(self, token: int) -> int:
        """The same; ``UserError`` where it is none of the vocabulary."""
        if not 0 <= token < len(self.vocabulary.markers):
            raise UserError(
                f"the server's token {str(token)[:20]} is not one of the tokenizer's: name the"
                " tokenizer of the served model"
            )
        return token

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
        return text == "" and PART not in (own := self.text([token])) and bool(own)


def spelling_of(
    vocabulary: Vocabulary, *, by_text: bool = False, likeliest: bool = True
) -> Spelling:
    """``by_text`` says that the server may name tokens by their text, ``likeliest`` whether the ids
    of the likeliest tokens are read."""  # fmt: skip
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
    ends = frozenset(vocabulary.eos_ids.tolist())
    return Spelling(vocabulary, ends, special, ids_of, likeliest)


class Reader:
    """Reads the chunks of one request."""

    __slots__ = ("_ended", "_held", "_least", "_most", "_open", "_read", "_spelling", "_usage",
                 "_waiting", "finish", "ids_given", "names_given", "over")  # fmt: skip

    def __init__(self, spelling: Spelling, most: int) -> None:
        """``most`` tokens were asked for: more are not taken, nor believed in what it counts."""
        self._spelling = spelling
        self._most = most
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
        self.over = False
        """whether more came than was asked for"""

    @property
    def paid(self) -> int:
        """Tokens that the server made, as far as it tells."""
        exact = self._ended and self._read == self._least
        if self._usage is not None and self._usage >= self._least and not exact:
            return self._usage
        return self._read + int(self.finish == "stop" and not self._ended)

    def take(self, chunk: Chunk) -> list[Token]:
        """The tokens of a chunk; ``ServerError`` where it says that the request was aborted.

        Raises ``ValueError`` for one that contradicts itself, or the request.
        """
        if chunk.usage is not None and 0 <= (chunk.usage.completion_tokens or 0) <= self._most:
            self._usage = chunk.usage.completion_tokens
        found = []
        for choice in chunk.choices or ():
            if not choice.index:  # one continuation was asked for
                found += self._take(choice)
        return found

    def _take(self, choice: Choice) -> list[Token]:
        if self._ended:
            return []  # padding
        tokens = self._tokens(choice)
        room = self._most - self._read
        if len(tokens) > room:
            tokens, self.over = tokens[:room], True
            self._least = self._most
        ends = [place for place, token in enumerate(tokens) if token.end]
        if ends:
            tokens = tokens[: ends[0] + 1]
            self._least = min(self._least, self._read + len(tokens))
        self._read += len(tokens)
        tokens, self._waiting = [*self._waiting, *tokens], []
        finish = choice.finish
        if finish in BROKEN and not ends:
            raise ServerError(f"the request was ended by the server ({finish})")
        if finish or ends:
            self.finish = "stop" if finish in _ENDED or ends else finish
        last = tokens[-1] if tokens else None
        if last is not None and not ends:
            told = choice.told
            shown = self._spelling.may_end(last.id, last.text)
            if self.finish == "stop" and (told == last.id if isinstance(told, int) else shown):
                tokens[-1] = last._replace(end=True)
            elif self.finish is None and shown:
                self._waiting = [tokens.pop()]
        self._ended = bool(tokens) and tokens[-1].end
        return tokens

    def _one(self, choice: Choice) -> Token | None:
        """The token of a chunk that gives one by its id, where only the log-probabilities of the
        likeliest are read: nearly every chunk of vLLM. None for any other."""  # fmt: skip
        given, listed, text = choice.token_ids, choice.logprobs, choice.text
        if self._spelling.likeliest or self._held or self._open or not text or PART in text:
            return None
        if not given or len(given) > 1 or listed is None or listed.content:
            return None
        values, tops = listed.token_logprobs, listed.top_logprobs
        if not values or not tops or len(values) > 1 or len(tops) > 1 or not tops[0]:
            return None
        logprob, nats = values[0], tuple(tops[0].values())
        try:  # a sum that holds NaN is none
            if not (logprob <= 0.0 and max(nats) <= 0.0 and sum(nats) <= 0.0):  # type: ignore[operator,arg-type,type-var]
                return None
        except TypeError:
            return None
        token = self._spelling.known(given[0])
        self.ids_given = True
        self._least += 1
        return Token(token, text, logprob, (), token in self._spelling.ends, nats)  # type: ignore[arg-type]

    def _tokens(self, choice: Choice) -> list[Token]:
        if (one := self._one(choice)) is not None:
            return [one]
        text, given = choice.text or "", choice.token_ids
        if len(text) > 4096 + 256 * self._most:
            raise ValueError(f"{len(text):,} characters for {self._most:,} tokens")
        listed = [*self._held, *listed_tokens(choice)]
        if max(len(given or ()), len(listed)) > self._most + _CHARACTER:
            raise ValueError(f"{max(len(given or ()), len(listed)):,} tokens for {self._most:,}")
        self._held = []
        self.ids_given |= bool(given) or any(isinstance(one.key, int) for one in listed)
        self.names_given |= any(isinstance(key, str) for one in listed for key, _ in one.top)
        keys = [self._spelling.id(one.key) for one in listed]
        known = [self._spelling.id(token) for token in given] if given else keys
        if None in known and not text:
            if len(listed) > _CHARACTER:
                raise ValueError(f"{len(listed)} tokens without an id or a text")
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
        lacks = not self._open and PART in whole and bool(text) and PART not in text
        self._open = [] if text or not whole.endswith(PART) else [*self._open, *ids]
        return lacks

    def _texts(self, ids: Sequence[int], names: Sequence[str], text: str) -> list[str]:
        """The chunk's text, dealt out to its tokens."""
        if len(ids) == 1:
            return [text]
        if len(ids) == len(names) and "".join(names) == text:
            return list(names)
        if len(ids) > _APART:  # beginnings of beginnings: the square of their number
            return [*[""] * (len(ids) - 1), text]
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
        top = tuple((self._spelling.id(key), value) for key, value in beside.top)
        return Token(token, text, beside.logprob, top, end)


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
    clock: Clock | None = None
    """of several requests together; one of its own if left out"""
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
        async with aclosing(self.blocks(apart=True)) as blocks:
            async for block in blocks:
                for token in block:
                    yield token

    async def blocks(self, *, apart: bool = False) -> AsyncGenerator[list[Token], None]:
        """The same, those that came at once together; or those of each chunk ``apart``, so that
        ``paid`` counts no chunk that was not taken."""  # fmt: skip
        left, clock = self.max_tokens, self.clock or self.endpoint.clock()
        while left > 0:
            self.readers.append(reader := Reader(self.spelling, left))
            try:
                async with aclosing(self._asked(left, clock)) as blocks:
                    async for block in blocks:
                        for found in self._read(reader, block, apart):
                            left -= len(found)
                            yield found
                        if reader.over:
                            break
                if reader.finish is None:
                    raise ServerError(f"{self.endpoint.site.name}: the stream ended in the middle")
            except ServerError as error:
                if reader.finish is None and left > 0:
                    await asyncio.sleep(clock.pause(self.patience, error))
                    continue
            self.finish = reader.finish or "length"
            return
        self.finish = "length"

    def _asked(self, left: int, clock: Clock) -> AsyncGenerator[list[Chunk], None]:
        said = {"prompt": self.prompt.body, "max_tokens": left, "stream": True, "n": 1}
        top = self.fields.get("logprobs")
        top = top if isinstance(top, int) else 0
        return self.endpoint.stream(
            "completions", {**self.fields, **said}, clock,
            event=room_for(4, top), whole=2 * room_for(left, top),
        )  # fmt: skip

    def _read(self, reader: Reader, block: list[Chunk], apart: bool) -> Iterator[list[Token]]:
        """The tokens of a block; those before a fault come before it."""
        found: list[Token] = []
        try:
            for chunk in block:
                found += self._take(reader, chunk)
                if apart and found:
                    yield found
                    found = []
                if reader.over:
                    break
        except (ServerError, UserError):
            if found:
                yield found
            raise
        if found:
            yield found

    def _take(self, reader: Reader, chunk: Chunk) -> list[Token]:
        site = self.endpoint.site
        try:
            return reader.take(chunk)
        except UserError:
            raise
        except ServerError as error:
            raise ServerError(f"{site.name}: {error}") from None
        except ValueError as error:
            raise site.fault(error, sent=True) from None


async def let_end(blocks: AsyncGenerator[list[Token], None]) -> None:
    """Read what a stream says after its last token, so that its connection is kept.

    Soon given up: nobody waits for it, and what goes wrong there matters to nobody.
    """
    with suppress(TimeoutError, ServerError, UserError):
        async with asyncio.timeout(_GOODBYE):
            async for _ in blocks:
                pass


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
            shared = listed and PART in spelling.text([token])
            found.append(listed[min(place, len(listed) - 1)] if shared else None)
    return found if place == len(listed) else None
