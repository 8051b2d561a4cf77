"""A task: questions with their targets, and the scorer that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_ID = 256
"""characters of a question's id: tables hold ids in columns of one width"""
LONGEST_QUESTION = 1_000_000
"""characters of a question or a target"""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its reference answer."""

    question_id: str
    question: str
    target: str
    meta: dict[str, Any] = field(default_factory=dict)
    """plain JSON that the scorer needs besides the target"""
    options: tuple[str, ...] = ()
    """of a multiple-choice question, the target among them; else empty"""


@dataclass(frozen=True, slots=True)
class Task:
    """Questions and how an answer to one of them is scored."""

    name: str
    questions: tuple[Question, ...]
    score: Callable[[Question, str], int]
    """``score(question, text)`` -> 0 or 1; the answer is extracted from the text first"""
    scorer: str = "auto"
    """its name, recorded in traces; votes and served answers are read by the same scorer"""
