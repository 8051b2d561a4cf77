"""What is written after the end of the thinking, and how an answer is read. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Ints
from rlbudget.models.profiles import Profile
from rlbudget.models.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Continuation:
    """Generated tokens and their log-probabilities."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropy: float
    """of the distribution of the first token, in nats"""


@dataclass(frozen=True, slots=True)
class ExitResult:
    """The answer after a forced end of the thinking."""

    answer: str
    answer_tokens: int
    """every token after the thinking: the exit text, the answer, its end"""
    ids: tuple[int, ...]
    """the generated tokens, without the exit text"""
    logprobs: tuple[float, ...]
    """their log-probabilities in nats, temperature 1"""
    entropy: float
    """of the distribution of the first of them, in nats"""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A trial answer of an unfinished decode."""

    answer: str
    confidence: float
    """geometric mean of the probabilities of its tokens, in [0, 1]"""
    tail: float
    """mean of the probabilities of its tokens after the first, 0 where there is only one"""
    tokens: int
    """tokens generated for it"""


@dataclass(frozen=True, slots=True)
class Finished:
    """The natural end of a row, or its end at the cap."""

    answer: str
    thinking_tokens: int
    answer_tokens: int
    natural: bool
    """False where the thinking was cut at ``max_tokens``"""
    ids: tuple[int, ...]
    """the tokens of the thinking"""
    text: str
    """the thinking"""
    rest: str
    """everything after it: the end of the thinking, the answer, its end"""


def make_exit(continuation: Continuation, vocabulary: Vocabulary, profile: Profile) -> ExitResult:
    """A continuation after the exit text as an answer."""
    return ExitResult(
        answer=read_answer(continuation.ids, vocabulary, profile, profile.answer_stop),
        answer_tokens=len(vocabulary.exit_ids) + len(continuation.ids),
        ids=continuation.ids,
        logprobs=continuation.logprobs,
        entropy=continuation.entropy,
    )


def begins_with_probe(profile: Profile, max_new: int) -> bool:
    """Whether an exit begins with the trial answer of up to ``max_new`` tokens: it has no cue and
    no stops of its own."""  # fmt: skip
    same = (profile.probe_cue, profile.probe_stop) == (profile.exit_text, profile.answer_stop)
    return same and max_new <= profile.max_answer_tokens


def make_probe(
    continuation: Continuation | ExitResult, max_new: int, vocabulary: Vocabulary, profile: Profile
) -> ProbeResult:
    """The first ``max_new`` tokens of a continuation as a trial answer."""
    ids, logprobs = continuation.ids[:max_new], continuation.logprobs[:max_new]
    tail = [math.exp(logprob) for logprob in logprobs[1:]]
    return ProbeResult(
        answer=read_answer(ids, vocabulary, profile, profile.probe_stop),
        confidence=float(np.exp(np.mean(logprobs))) if logprobs else 0.0,
        tail=sum(tail) / len(tail) if tail else 0.0,
        tokens=len(ids),
    )


def read_answer(
    ids: Sequence[int] | Ints,
    vocabulary: Vocabulary,
    profile: Profile,
    stops: Sequence[str],
) -> str:
    """The answer that generated tokens spell: up to the first stop text, stripped.

    A model that thinks on in its answer ends that too: what stands after the last end counts.
    """
    text = vocabulary.text(_after_last_end(ids, vocabulary))
    for stop in stops:
        text = _before(text, stop)
    text = text.rpartition(vocabulary.end_text)[2]
    return text.strip().strip(profile.strip).strip()


def ends_answer(ids: Sequence[int], vocabulary: Vocabulary, stops: Sequence[str]) -> bool:
    """Whether a stop text has been written; only asked where a profile has some."""
    text = vocabulary.text(ids)
    return any(_before(text, stop) != text for stop in stops)


def _after_last_end(ids: Sequence[int] | Ints, vocabulary: Vocabulary) -> list[int]:
    found = [int(token) for token in ids]
    if vocabulary.end_id not in found:
        return found
    return found[len(found) - found[::-1].index(vocabulary.end_id) :]


def _before(text: str, stop: str) -> str:
    # A stop before the first word (a line break right after the cue) is not an end.
    head = len(text) - len(text.lstrip())
    at = _closing_brace(text) if stop == "}" else text.find(stop, head)
    return text if at < 0 else text[:at]


def _closing_brace(text: str) -> int:
    """Where the brace closes that the cue has opened; -1 where it does not."""
    depth, escaped = 0, False
    for place, character in enumerate(text):
        if not escaped and character in "{}":
            if character == "}" and not depth:
                return place
            depth += 1 if character == "{" else -1
        escaped = character == "\\" and not escaped
    return -1
