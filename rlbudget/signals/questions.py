"""Numbers of the question, known before the first thinking token and constant from then on.

They hint without any model at how hard it is: its length, how many numbers and clauses it holds.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable

import numpy as np

from rlbudget.arrays import Floats

CONTEXT_SIGNALS = (
    "question_characters",
    "question_words",
    "question_sentences",
    "question_clauses",
    "question_numbers",
    "question_digits",
    "question_largest",
    "question_operators",
    "question_minus",
    "question_rare",
)
"""Logarithms of 1 + characters; 1 + words; 1 + sentences; 1 + clauses (commas, semicolons, "and",
"or", "if", "then", "but"); 1 + numbers; 1 + digits; 1 + the largest number (base 10); 1 + signs of
calculation; 1 + minus signs and words of taking away; and the share of the words that are longer
than seven letters."""

TASK_SIGNALS = tuple(f"task_{place}" for place in range(6))
"""The request's task, for a policy that is told it: six bits of a hash of its name, -1 or 1 each,
which tell unseen tasks apart as well; 0 without a task. For recorded traces the name is the
``family`` of their ``meta``, else their ``task``."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_CLAUSE = re.compile(r"[,;:]|\b(?:and|or|if|then|but|while|than|each)\b", re.IGNORECASE)
_OPERATOR = re.compile(r"[+*/=×÷^]|(?<=\s)-(?=\s)")
_MINUS = re.compile(r"-|−|\b(?:less|fewer|left|remain\w*|without|ago|before|lost)\b", re.IGNORECASE)
_LARGEST = 1e12


def context_signals(question: str) -> dict[str, float]:
    """The ``CONTEXT_SIGNALS`` of a question; always finite."""
    numbers = _NUMBER.findall(question)
    words = _WORD.findall(question)
    largest = max((min(float(number[:18]), _LARGEST) for number in numbers), default=0.0)
    counts = (
        len(question),
        len(words),
        len(_SENTENCE.findall(question)),
        len(_CLAUSE.findall(question)),
        len(numbers),
        sum(character.isdigit() for character in question),
    )
    values = (
        *(math.log1p(count) for count in counts),
        math.log10(1 + largest),
        math.log1p(len(_OPERATOR.findall(question))),
        math.log1p(len(_MINUS.findall(question))),
        sum(len(word) > 7 for word in words) / max(len(words), 1),
    )
    return dict(zip(CONTEXT_SIGNALS, values, strict=True))


def task_signals(task: str) -> dict[str, float]:
    """The ``TASK_SIGNALS`` of a task's name; zeros for none."""
    bits = hashlib.sha256(task.encode()).digest()[0]
    return {
        name: (1.0 if bits >> place & 1 else -1.0) if task else 0.0
        for place, name in enumerate(TASK_SIGNALS)
    }


def task_columns(tasks: Iterable[str]) -> dict[str, Floats]:
    """``task_signals`` of many tasks: name -> (n,)."""
    return _columns(TASK_SIGNALS, tasks, task_signals)


def context_columns(questions: Iterable[str]) -> dict[str, Floats]:
    """``context_signals`` of many questions: name -> (n,)."""
    return _columns(CONTEXT_SIGNALS, questions, context_signals)


def _columns(
    names: tuple[str, ...], texts: Iterable[str], read: Callable[[str], dict[str, float]]
) -> dict[str, Floats]:
    each = list(texts)
    known = {text: tuple(read(text).values()) for text in dict.fromkeys(each)}  # read once
    rows = np.array([known[text] for text in each], dtype=np.float64)
    return dict(zip(names, rows.reshape(-1, len(names)).T, strict=True))
