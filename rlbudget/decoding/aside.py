"""What a request wants decoded aside, and how what came of it is read.

An exit, whose answer is written before it counts, and a trial answer, which is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from rlbudget.decoding.core import Core, HandOver
from rlbudget.models.reading import (
    Continuation,
    ExitResult,
    ProbeResult,
    begins_with_probe,
    make_exit,
    make_probe,
)
from rlbudget.traces.trace import Checkpoint, Exit, Probe


@dataclass(frozen=True, slots=True)
class Fork:
    """A wish of a request: decode greedily from here, aside; the decode itself goes on untouched.

    ``cue`` is fed first, then up to ``cap`` tokens until an end of sequence or one of ``stops``.
    """

    cue: tuple[int, ...]
    cap: int
    stops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choose:
    """A wish of a request: how likely each answer option is as the trial answer here, aside.

    ``options`` are their token ids after ``cue``. Only of an engine with ``options``.
    """

    cue: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a ``Choose`` gave."""

    entropy: float
    """of the distribution over the options, in nats"""
    tokens: int
    """that the look costs"""


Wish: TypeAlias = Fork | Choose | HandOver


def exit_fork(core: Core) -> Fork:
    """The exit text and the answer after it."""
    profile = core.profile
    return Fork(core.vocabulary.exit_ids, profile.max_answer_tokens, profile.answer_stop)


def exit_of(core: Core, found: Continuation) -> ExitResult:
    """What an ``exit_fork`` gave."""
    return make_exit(found, core.vocabulary, core.profile)


def entropy_fork(core: Core) -> Fork:
    """The first token after the exit text, of which the entropy counts; it costs one token."""
    return Fork(core.vocabulary.exit_ids, 1, ())


def tells_entropy(core: Core) -> bool:
    """Whether a trial answer tells the entropy of the exit's first token, having the same cue."""
    return begins_with_probe(core.profile, core.probe_tokens)


def probe_fork(core: Core) -> Fork:
    """A trial answer."""
    return Fork(core.vocabulary.probe_ids, core.probe_tokens, core.profile.probe_stop)


def probe_of(core: Core, found: Continuation) -> ProbeResult:
    """What a ``probe_fork`` gave."""
    return make_probe(found, core.probe_tokens, core.vocabulary, core.profile)


def trial_of(core: Core, exit: ExitResult) -> ProbeResult | None:
    """The trial answer that an exit begins with; None where a probe has a cue of its own."""
    profile, most = core.profile, core.probe_tokens
    if most < 1 or not begins_with_probe(profile, most):
        return None
    return make_probe(exit, most, core.vocabulary, profile)


def checkpoint_of(
    thinking: int, signals: Mapping[str, float], here: ExitResult, trial: ProbeResult | None
) -> Checkpoint:
    """A checkpoint as the recorder writes it, its exits not scored."""
    looks = {"exit_entropy": here.entropy} if math.isfinite(here.entropy) else {}
    if trial is not None:
        looks["probe_tail"] = trial.tail
    return Checkpoint(
        thinking_tokens=thinking,
        signals={**signals, **looks},
        exit=Exit(here.answer, 0, here.answer_tokens),
        probe=None if trial is None else Probe(trial.answer, trial.confidence, trial.tokens),
    )
