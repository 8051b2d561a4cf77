"""One question through a served model: its full decode, then the exits along it.

The decode is asked for in long pieces, the exits right after it, all together: their prefixes are
then in the server's cache. What comes out is what ``decoding.record`` would have recorded of the
same tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from rlbudget.decoding.checkpoints import Written
from rlbudget.decoding.record import Recorded, Settings, trace_of
from rlbudget.errors import UserError
from rlbudget.models.completions import Prompt, Token
from rlbudget.models.reading import (
    Continuation,
    Finished,
    begins_with_probe,
    make_probe,
    read_answer,
)
from rlbudget.models.served import ServedModel, Server
from rlbudget.models.served_prompt import prompt_of
from rlbudget.models.served_write import Spent, answer_after, continuation, signals_of, write
from rlbudget.signals.tokens import MARKER_SIGNALS, TOKEN_SIGNALS, TOP_SIGNALS, TokenWindow
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.trace import Checkpoint, Exit, Probe

PIECE = 2048
"""Tokens of the thinking asked for at once: what a fault can cost."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A question and how its decode is made."""

    number: int
    question: Question
    seed: int


@dataclass(frozen=True, slots=True)
class _Thought:
    """A thinking and how it ended."""

    tokens: tuple[Token, ...]
    end: tuple[Token, ...] = ()
    """what the model wrote to end it; empty where the exit text is forced"""
    rest: tuple[Token, ...] = ()
    """greedy tokens after that, which are known already"""
    stopped: bool = False
    """whether those end the sequence"""
    natural: bool = True
    """whether the model ended it, not the cap"""
    unseen: int = 0
    """paid tokens that the exit text takes the place of"""


async def record_question(
    model: ServedModel,
    server: Server,
    task: Task,
    job: Job,
    settings: Settings,
    score: Callable[[str], int],
    spent: Spent,
) -> Recorded:
    """Decode a question on one of the servers.

    Raises ``UserError`` where it does not fit into the context or is refused, ``ServerError``
    where the server gives up.
    """
    prompt = await prompt_of(model, server, job.question.question)
    _check_room(model, len(prompt.ids), settings)
    thought = await _think(model, server, prompt, job, settings, spent)
    end, points = await together(
        _finish(model, server, prompt, thought, job, spent),
        _points(model, server, prompt, thought, job, settings, score, spent),
    )
    match = score(end.answer)
    trace = trace_of(model, task, job.question, job.seed, end, points, settings, match)
    return Recorded(trace, end.text + end.rest)


def _check_room(model: ServedModel, prompt: int, settings: Settings) -> None:
    after = model.profile.max_answer_tokens + len(model.vocabulary.exit_ids)
    if model.context is not None and prompt + settings.max_tokens + after > model.context:
        raise UserError(
            f"{prompt} prompt tokens, {settings.max_tokens} of thinking and {after} of answer do"
            f" not fit into the server's context of {model.context}: lower max_tokens"
        )


async def _think(
    model: ServedModel, server: Server, prompt: Prompt, job: Job, settings: Settings, spent: Spent
) -> _Thought:
    """Think to the end, or to the cap."""
    here = Prompt([*prompt.ids], prompt.text, prompt.by_ids)
    greedy = settings.temperature == 0
    end_id = model.vocabulary.end_id
    tokens: list[Token] = []
    while True:
        left = settings.max_tokens - len(tokens)
        found = await write(
            server, here, min(left, PIECE) if model.by_ids else left,
            temperature=settings.temperature, seed=job.seed + len(tokens),
            stops=() if greedy or end_id is None else (end_id,), rank=(1, job.number),
            spent=spent, again=len(here.ids) if tokens else 0,
        )  # fmt: skip
        start = len(tokens)
        tokens += found.tokens
        here.add([one.id for one in found.tokens], "".join(one.text for one in found.tokens))
        thought = _ended(model, tokens, start, settings.stride, found.stopped, greedy=greedy)
        if thought is not None:
            return thought
        if len(tokens) >= settings.max_tokens or not found.tokens:
            return _Thought(tuple(tokens), natural=False)


def _ended(
    model: ServedModel,
    tokens: Sequence[Token],
    start: int,
    stride: int,
    stopped: bool,
    *,
    greedy: bool,
) -> _Thought | None:
    """The thinking where ``tokens[start:]`` end it; None where they do not."""
    vocabulary = model.vocabulary
    ids = [one.id for one in tokens]
    eos = set(vocabulary.eos_ids.tolist())
    spells = vocabulary.end_id is None and vocabulary.end_text in vocabulary.text(
        ids[max(start - vocabulary.end_window, 0) :], special=True
    )
    for place in range(start, len(ids)):
        spelled = int(ids[place] == vocabulary.end_id)
        if spells:
            spelled = vocabulary.end_length(ids[: place + 1])
        if spelled:
            # An end text may straddle a checkpoint; the thinking never ends before it.
            at = max(place + 1 - spelled, place // stride * stride)
            rest = tokens[place + 1 :] if greedy else ()
            return _Thought(
                tuple(tokens[:at]), tuple(tokens[at : place + 1]), tuple(rest),
                stopped and greedy and bool(rest),
            )  # fmt: skip
        if ids[place] in eos or tokens[place].end:
            return _Thought(tuple(tokens[:place]), unseen=1)
    return _Thought(tuple(tokens), unseen=1) if stopped else None


async def _finish(
    model: ServedModel, server: Server, prompt: Prompt, thought: _Thought, job: Job, spent: Spent
) -> Finished:
    """The answer after the thinking, greedy."""
    profile, vocabulary = model.profile, model.vocabulary
    cap, stops = profile.max_answer_tokens, profile.answer_stop
    end = [one.id for one in thought.end] or list(vocabulary.exit_ids)
    known = continuation(model, thought.rest, thought.stopped, cap=cap, stops=stops)
    ids = list(known.ids)
    if not _whole(model, known, len(thought.rest), cap):
        here = _prefix(prompt, thought.tokens)
        text = "".join(one.text for one in (*thought.end, *thought.rest))
        here.add([*end, *ids], text if thought.end else vocabulary.text(end, special=True))
        found = await write(
            server, here, cap - len(ids), rank=(0, job.number), spent=spent, again=len(here.ids)
        )
        both = [*thought.rest[: len(ids)], *found.tokens]
        ids = list(continuation(model, both, found.stopped, cap=cap, stops=stops).ids)
    thinking = [one.id for one in thought.tokens]
    return Finished(
        answer=read_answer(ids, vocabulary, profile, stops),
        thinking_tokens=len(thinking),
        answer_tokens=len(end) + len(ids) + thought.unseen,
        natural=thought.natural,
        ids=tuple(thinking),
        text=vocabulary.text(thinking, special=True),
        rest=vocabulary.text([*end, *ids], special=True),
    )


def _whole(model: ServedModel, known: Continuation, given: int, cap: int) -> bool:
    """Whether a beginning of an answer is all of it: ended, cut by a stop, or at the cap."""
    if len(known.ids) >= cap or len(known.ids) != given:
        return True
    return bool(known.ids) and known.ids[-1] in model.vocabulary.eos_ids


async def _points(
    model: ServedModel,
    server: Server,
    prompt: Prompt,
    thought: _Thought,
    job: Job,
    settings: Settings,
    score: Callable[[str], int],
    spent: Spent,
) -> list[Checkpoint]:
    """The checkpoints of a thinking, each with what a stop there gives."""
    ids = [one.id for one in thought.tokens]
    places = grid(model, ids[: settings.max_tokens - 1], settings.stride)
    signals = measured(model, thought.tokens, places)
    written = Written(model.vocabulary, texts=settings.text_signals or not model.top)
    thinking = np.array(ids, dtype=np.int64)
    for place, shown in zip(places, signals, strict=True):
        shown |= written.at(0, thinking[:place])
    prefixes = {place: _prefix(prompt, thought.tokens[:place]) for place in places}
    return await checkpoints_at(
        model, server, prefixes, signals, score,
        probe_tokens=settings.probe_tokens, number=job.number, spent=spent,
    )  # fmt: skip


def grid(model: ServedModel, ids: Sequence[int], stride: int) -> list[int]:
    """Where the checkpoints of a thinking lie: every ``stride`` tokens, none inside a character."""
    return [
        place for place in range(stride, len(ids) + 1, stride)
        if not model.vocabulary.inside_character(ids[:place])
    ]  # fmt: skip


async def checkpoints_at(
    model: ServedModel,
    server: Server,
    prefixes: Mapping[int, Prompt],
    signals: Sequence[dict[str, float]],
    score: Callable[[str], int],
    *,
    probe_tokens: int,
    number: int,
    spent: Spent,
) -> list[Checkpoint]:
    """The checkpoints of decode ``number``, asked for together: the place of each and what comes
    before its exit, and its other signals."""  # fmt: skip
    found = await together(*(
        exit_at(model, server, prefix, probe_tokens, rank=(0, number), spent=spent)
        for prefix in prefixes.values()
    ))  # fmt: skip
    return [
        Checkpoint(
            thinking_tokens=place,
            signals=shown | one.looks,
            exit=Exit(one.answer, score(one.answer), one.answer_tokens),
            probe=one.probe,
        )
        for place, shown, one in zip(prefixes, signals, found, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class ExitHere:
    """What a stop gives."""

    answer: str
    answer_tokens: int
    """every token after the thinking: the exit text, the answer, its end"""
    probe: Probe | None
    """the trial answer; None where none is asked for or nothing is known of its probability"""
    looks: dict[str, float]
    """the signals that come with it"""


async def exit_at(
    model: ServedModel,
    server: Server,
    prefix: Prompt,
    probe_tokens: int,
    *,
    rank: tuple[int, ...] = (0,),
    spent: Spent | None = None,
) -> ExitHere:
    """The answer after a forced end of the thinking that ``prefix`` ends with, and the trial
    answer of up to ``probe_tokens``; raises as ``write`` does."""  # fmt: skip
    profile, vocabulary = model.profile, model.vocabulary
    cap, stops = profile.max_answer_tokens, profile.answer_stop
    written = await answer_after(
        model, server, prefix, vocabulary.exit_ids, cap=cap, stops=stops, rank=rank, spent=spent
    )
    looks: dict[str, float] = {}
    probe = None
    if model.top:
        looks["exit_entropy"] = written.entropy
        trial = written
        if probe_tokens and not begins_with_probe(profile, probe_tokens):
            trial = await answer_after(
                model, server, prefix, vocabulary.probe_ids, cap=probe_tokens,
                stops=profile.probe_stop, rank=rank, spent=spent,
            )  # fmt: skip
        if probe_tokens:
            made = make_probe(trial, probe_tokens, vocabulary, profile)
            looks["probe_tail"] = made.tail
            probe = Probe(made.answer, min(made.confidence, 1.0), made.tokens)
    return ExitHere(
        answer=read_answer(written.ids, vocabulary, profile, stops),
        answer_tokens=len(vocabulary.exit_ids) + len(written.ids),
        probe=probe,
        looks=looks,
    )


def measured(
    model: ServedModel, tokens: Sequence[Token], places: Sequence[int]
) -> list[dict[str, float]]:
    """The signals at each place of a thinking, over the tokens since the place before it.

    Where nothing is listed of one of these tokens only the markers are given, and nothing where
    the servers list nothing at all: a policy is then trained on ``signals.text``.
    """
    window, nothing = TokenWindow(), (0.0,) * len(TOKEN_SIGNALS)
    given = [name for name in TOP_SIGNALS if name in model.signals]
    found = []
    for start, stop in pairwise((0, *places)):
        partial = False
        for token in tokens[start:stop]:
            signals = signals_of(model, token) if model.top else None
            partial |= signals is None
            values = nothing if signals is None else tuple(signals.tolist())
            window.push(values, model.vocabulary.markers[token.id].tolist())
        read = window.read()
        names = MARKER_SIGNALS if partial and model.top else given
        found.append({name: read[name] for name in names})
    return found


def _prefix(prompt: Prompt, tokens: Sequence[Token]) -> Prompt:
    here = Prompt([*prompt.ids], prompt.text, prompt.by_ids)
    here.add([one.id for one in tokens], "".join(one.text for one in tokens))
    return here


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all, in order; where one fails the others are cancelled and it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
