"""A task: questions with their targets, and the scorer that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its reference answer."""

    question_id: str
    question: str
    target: str
    meta: dict[str, Any] = field(default_factory=dict)
    """plain JSON; what the scorer needs beside the target"""
    options: tuple[str, ...] = ()
    """the answers there are to choose from, the target among them; empty where any text may be
    an answer"""


@dataclass(frozen=True, slots=True)
class Task:
    """Questions and how an answer to one of them is scored."""

    name: str
    questions: tuple[Question, ...]
    score: Callable[[Question, str], int]
    """``score(question, text)`` -> 0 or 1, the answer being looked for in the text"""
    scorer: str = "auto"
    """its name; traces say it, votes count by it, served answers are found by it"""
