"""A trace: one full decode with the answer that a stop at each checkpoint would have given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Probe:
    """A trial answer from a fork of the unfinished decode, thrown away afterwards."""

    answer: str
    confidence: float
    """geometric mean of the probabilities of its tokens, in [0, 1]"""
    tokens: int
    """tokens generated for it"""


@dataclass(frozen=True, slots=True)
class Exit:
    """What a stop here gives."""

    answer: str
    exact_match: int
    answer_tokens: int
    """every token after the thinking: the end-of-thinking text, the answer, its end"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point of a decode where one may stop."""

    thinking_tokens: int
    signals: dict[str, float]
    exit: Exit
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Final:
    """The natural end of a decode: its answer and its cost."""

    answer: str
    exact_match: int
    thinking_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One full decode. Checkpoints come in order, all before the natural end."""

    trace_id: str
    question_id: str
    task: str
    question: str
    target: str
    model: str
    seed: int
    final: Final
    checkpoints: tuple[Checkpoint, ...]
    meta: dict[str, Any] = field(default_factory=dict)
