"""Signals of the text alone: what a thinking says of itself, without any log-probability.

They follow from the text up to a checkpoint and from where the checkpoints before it lay, from
nothing else: so a recording, a replay and a stream of text that comes in other pieces give the
same numbers. A word or number that the checkpoint cuts counts at the next one. Markers are
English; lengths, repetition and numbers are not.

A *claim* is a sentence that concludes or checks something (``so``, ``the answer is``, ``same``,
``\\boxed``, ...) and names a value: its last number, boxed expression or lettered option. Equal
claims in a row are what a trial answer would show, and cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rlbudget.signals.tokens import HEDGES, SIGNALS

TEXT_SIGNALS = (
    "text_characters",
    "text_words",
    "text_sentences",
    "text_digits",
    "text_hedges",
    "text_conclusions",
    "text_checks",
    "text_repeats",
    "text_numbers",
    "text_new_numbers",
    "text_claims",
    "text_claim_streak",
    "text_claim_kinds",
    "text_claim_share",
    "text_claim_again",
)
"""Since the checkpoint before: characters; words and numbers; ends of sentences; share of the
characters that are digits; words of doubt, concluding words, words of checking; share of the
sequences of three words that were written before; numbers, and the share of them that were not
written before; claims. Of the whole text so far: claims in a row that name the last value,
different values claimed, share of the claims that name the last one, and how often its value was
written at all. All are 0 where there is nothing to count."""

DOUBTS = HEDGES | {"actually", "perhaps", "oops", "mistake", "wrong", "instead"}
CONCLUDING = frozenset({"so", "therefore", "thus", "hence", "answer", "final", "finally",
                        "total", "result", "conclude", "conclusion", "overall", "boxed",
                        "done"})  # fmt: skip
CHECKING = frozenset({"same", "again", "check", "checks", "verify", "verified", "confirm",
                      "confirms", "confirmed", "matches", "agrees", "correct", "indeed",
                      "right", "yes"})  # fmt: skip
_CLAIMING = CONCLUDING | (CHECKING - {"check", "right"})

_WORD = re.compile(r"\w+")
_CUT = re.compile(r"[\w'’]*\Z")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_END = re.compile(r"[.!?;](?!\w)|[\n。！？；]")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]{1,60})\}")
_OPTION = re.compile(r"\b(?:answer|option|choice)\b[^.\n]{0,24}?\(?\b([A-J])\b")
_LONGEST_WORD = 60
_LONGEST_SENTENCE = 600
_MOST = 1 << 16
"""sequences and numbers that are remembered"""
_GRAM = 3


def of_text_alone(features: Iterable[str]) -> bool:
    """Whether features read the text, and no signal of tokens besides."""
    signals = {feature.partition(".")[0] for feature in features}
    return bool(signals & set(TEXT_SIGNALS)) and not signals & set(SIGNALS)


class TextWindow:
    """What one decode remembers of its text; not to be shared between decodes or threads."""

    __slots__ = ("_claims", "_grams", "_kinds", "_last", "_new", "_numbers", "_open", "_rest",
                 "_streak", "_words")  # fmt: skip

    def __init__(self) -> None:
        self._new: list[str] = []
        self._rest = ""  # a word or number that may go on
        self._open = ""  # the sentence so far
        self._words: list[str] = []  # the last of them
        self._grams: set[tuple[str, ...]] = set()
        self._numbers: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._claims = self._streak = 0
        self._last = ""

    def push(self, text: str) -> None:
        """Add text, in pieces of any size."""
        self._new.append(text)

    def read(self) -> dict[str, float]:
        """The ``TEXT_SIGNALS`` at a checkpoint, always finite; what comes next counts anew."""
        new = "".join(self._new)
        self._new.clear()
        text = self._rest + new
        cut = _CUT.search(text)
        place = len(text) if cut is None else cut.start()
        if len(text) - place > _LONGEST_WORD:  # writing without spaces
            place = len(text)
        text, self._rest = text[:place], text[place:]
        words = [word.lower() for word in _WORD.findall(text)]
        numbers = [number.replace(",", "") for number in _NUMBER.findall(text)]
        unseen = self._count(numbers)
        *sentences, still_open = _END.split(self._open + text)
        claims = 0
        for sentence in sentences:
            if value := _claimed(sentence):
                self._claim(value)
                claims += 1
        self._open = still_open[-_LONGEST_SENTENCE:]
        return {
            "text_characters": float(len(new)),
            "text_words": float(len(words)),
            "text_sentences": float(len(sentences)),
            "text_digits": sum(map(str.isdigit, new)) / max(len(new), 1),
            "text_hedges": float(sum(word in DOUBTS for word in words)),
            "text_conclusions": float(sum(word in CONCLUDING for word in words)),
            "text_checks": float(sum(word in CHECKING for word in words)),
            "text_repeats": self._repeated(words),
            "text_numbers": float(len(numbers)),
            "text_new_numbers": unseen / max(len(numbers), 1),
            "text_claims": float(claims),
            **self._claims_with(_claimed(self._open)),
        }

    def _count(self, numbers: Sequence[str]) -> int:
        """Remember numbers; how many are new."""
        unseen = 0
        for number in numbers:
            before = self._numbers.get(number, 0)
            unseen += not before
            if before or len(self._numbers) < _MOST:
                self._numbers[number] = before + 1
        return unseen

    def _repeated(self, words: Sequence[str]) -> float:
        """The share of the sequences that end in these words and were written before."""
        line = [*self._words, *words]
        self._words = line[-(_GRAM - 1) :]
        grams = list(zip(*(line[place:] for place in range(_GRAM)), strict=False))
        seen = 0
        for gram in grams:
            if gram in self._grams:
                seen += 1
            elif len(self._grams) < _MOST:
                self._grams.add(gram)
        return seen / max(len(grams), 1)

    def _claim(self, value: str) -> None:
        self._streak = self._streak + 1 if value == self._last else 1
        self._last = value
        self._claims += 1
        self._kinds[value] = self._kinds.get(value, 0) + 1

    def _claims_with(self, value: str) -> dict[str, float]:
        """The claims so far, and that of the sentence still open, if it makes one."""
        streak, last, claims = self._streak, self._last, self._claims
        kinds, mine = len(self._kinds), self._kinds.get(value or last, 0)
        if value:
            streak = streak + 1 if value == last else 1
            kinds += not mine
            last, claims, mine = value, claims + 1, mine + 1
        return {
            "text_claim_streak": float(streak),
            "text_claim_kinds": float(kinds),
            "text_claim_share": mine / max(claims, 1),
            "text_claim_again": float(self._numbers.get(last, 0)),
        }


def _claimed(sentence: str) -> str:
    """The value that a sentence claims, "" for none."""
    if boxed := _BOXED.search(sentence):
        return boxed[1].strip().replace(",", "")
    if option := _OPTION.search(sentence):
        return option[1]
    if not any(word.lower() in _CLAIMING for word in _WORD.findall(sentence)):
        return ""
    numbers = _NUMBER.findall(sentence)
    return numbers[-1].replace(",", "") if numbers else ""
