"""What a scorer is, and how it is kept from hanging.

What a model wrote decides how long a scorer works: it may be a million brackets, or a formula that
no algebra system ends with. Short answers are read here: every step takes bounded time on so few
characters, and the comparison of formulas has a process of its own. All others are read in a
process with limits of time and memory, and an answer that is not read within them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.choice import LETTERS
from rlbudget.tasks.extraction import after_thinking
from rlbudget.tasks.mathematics import one_answer
from rlbudget.tasks.worker import Worker

SHORT = 2_000
"""characters that are read without a process: of an answer, a target, an option"""
LONGEST_TEXT = 1_000_000
"""characters after the thinking; of a longer text the last ones are read"""
_SECONDS = 2.5
_CPU_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What a scorer may know of a question beside the target."""

    options: tuple[str, ...] = ()
    question: str = ""


NOTHING = Asked()


@dataclass(frozen=True, slots=True)
class Scorer:
    """Finds the answer in a text and compares it with a target, or with another answer.

    ``score``, ``find``, ``same`` and ``key`` take any text, and bounded time.
    """

    name: str
    finds: Callable[[str, str | None, Asked], str]
    """(text, target or None, asked) -> the extracted answer, "" for none"""
    compares: Callable[[str, str, Asked], bool]
    """(extracted answer, target, asked) -> whether it is the target"""
    keys: Callable[[str], Hashable]
    """extracted answer -> a key that equal answers share, as far as that is quick to compute"""
    anywhere: bool = False
    """whether it takes bounded time on a text of any length"""

    def score(
        self, text: str, *targets: str, options: Sequence[str] = (), question: str = ""
    ) -> int:
        """1 if the answer in ``text`` is the target, or one of several, else 0.

        Raises ``UserError`` for more options than there are letters.
        """
        if len(options) > len(LETTERS):
            raise UserError(f"{len(options)} options; {len(LETTERS)} are the most")
        if self._is_short(text, *targets, *options):
            asked = Asked(tuple(options), question) if options or question else NOTHING
            with one_answer():
                return self.judge(text, targets, asked)
        return int(bool(self._asked("score", text, targets, options, question)))

    def judge(self, text: str, targets: Sequence[str], asked: Asked) -> int:
        """``score`` in this process, whatever time it takes."""
        found = (self.compares(self.finds(text, t, asked), t, asked) for t in targets)
        return int(any(found))

    def find(self, text: str, target: str | None = None, asked: Asked = NOTHING) -> str:
        """The answer in ``text``, "" for none; ``target`` says what kind is looked for."""
        if self._is_short(text, target or "", *asked.options):
            return self.finds(text, target, asked)
        found = self._asked("find", text, target, asked.options, asked.question)
        return found if isinstance(found, str) else ""

    def same(self, answer: str, target: str, asked: Asked = NOTHING) -> bool:
        """Whether an extracted answer is the target."""
        if self._is_short(answer, target, *asked.options):
            with one_answer():
                return self.compares(answer, target, asked)
        return bool(self._asked("same", answer, target, asked.options, asked.question))

    def key(self, answer: str) -> Hashable:
        """A key that equal extracted answers share; a long one is compared as text."""
        return self.keys(answer) if len(answer) <= SHORT else " ".join(answer.casefold().split())

    def _is_short(self, text: str, *beside: str) -> bool:
        if self.anywhere:
            return True
        if len(text) > SHORT and len(after_thinking(text)) > SHORT:
            return False
        return all(len(one) <= SHORT for one in beside)

    def _asked(self, what: str, text: str, *given: Any) -> Any:
        rest = after_thinking(text)[-LONGEST_TEXT:]
        return _WORKER.ask(
            what, self.name, rest, *given, seconds=_SECONDS, cpu_seconds=_CPU_SECONDS
        )


_WORKER = Worker("rlbudget.tasks.long_answers:answered", "find", "auto", "1", None, [], "")
