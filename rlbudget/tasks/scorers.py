"""Scorers by name: the answer is extracted from a text, then compared with the target.

================  ==========================================================================
auto              by the target: choice among options or for a lone capital letter, math for
                  numbers and formulas, else text
exact             the whole text, stripped
text              words, ignoring case, articles, spacing and sentence punctuation
number            one number: currency, thousands, percent, scientific notation, units
math              numbers, formulas, lists, sets, tuples, intervals, matrices, other bases
choice            which option is named, by its letter or its text
regex:PATTERN     the last match of the pattern (its first group) in the answer, as ``text``; a
                  pattern of ``rlbudget.tasks.patterns``
python:P.F        the function F(answer text, target) of package P: a bool, or 1 for right; called
                  in a process of its own
================  ==========================================================================

All but ``exact``, ``regex`` and ``python`` extract the answer by ``rlbudget.tasks.extraction``.
``score`` takes any text, in bounded time (see ``rlbudget.tasks.scorer``), and never raises, except
from a function of your own.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.choice import LETTERS, chosen, labels_of, option_texts
from rlbudget.tasks.expressions import is_solid, read
from rlbudget.tasks.extraction import Kind, after_thinking, answer_in
from rlbudget.tasks.forms import Expression, Form, Number, Words, key_of, same_form
from rlbudget.tasks.mathematics import same_mathematics
from rlbudget.tasks.notation import tidy
from rlbudget.tasks.numbers import CURRENCIES, plain_number
from rlbudget.tasks.patterns import Pattern
from rlbudget.tasks.remembered import remembered
from rlbudget.tasks.scorer import Asked, Scorer
from rlbudget.tasks.spoken import spoken_number
from rlbudget.tasks.text import normalise_text, same_text
from rlbudget.tasks.units import is_unit_word
from rlbudget.tasks.worker import Worker

NAMES = ("auto", "exact", "text", "number", "math", "choice", "regex:PATTERN",
         "python:PACKAGE.FUNCTION")  # fmt: skip


def find_scorer(name: str) -> Scorer:
    """The scorer of a name. Raises ``UserError`` for an unknown name, an invalid pattern, and a
    function that cannot be imported."""  # fmt: skip
    if name in _PLAIN:
        return _PLAIN[name]
    kind, colon, rest = name.partition(":")
    if colon and rest and kind == "regex":
        return _regex(rest)
    if colon and rest and kind == "python":
        return _python(rest)
    raise UserError(f"no scorer {name!r}; there are: {', '.join(NAMES)}")


_OF_TASK = {"gsm8k": "math", "math": "math", "squad": "text"}


def scorer_of_task(task: str) -> str:
    """The name of the scorer of a well-known task, else ``auto``."""
    return _OF_TASK.get(task, "auto")


def scorer_of_requests(recorded: str) -> str:
    """The scorer of served requests where recordings had this one: a request lacks what a task's
    own verifier needs, and is scored by ``auto``, as its answer is found."""
    return "auto" if recorded == "verifier" else recorded


def extracted(text: str, scorer: str = "auto") -> str:
    """The answer in what a model wrote, "" where there is none, as the named scorer extracts it;
    a task's own verifier counts as ``auto``."""  # fmt: skip
    return _known(scorer).find(text)


def _known(scorer: str) -> Scorer:
    if scorer.startswith("regex:"):
        return find_scorer(scorer)
    return _PLAIN.get(scorer, _PLAIN["auto"])


def vote_key(text: str, scorer: str = "auto") -> Hashable:
    """A key that equal answers share under a scorer; votes and streaks are counted by it.

    ``18``, ``18.0``, ``$18`` and ``The answer is **18**.`` share a key, so do simple formulas of
    the same values (``tasks.values``); others only where they are written alike.
    """
    if scorer == "auto" and text.isascii() and text.isdigit():
        return plain_number(text)
    known = _known(scorer)
    found = known.find(text)
    return _key(found, known.name) if len(found) <= _REMEMBERED else known.key(found)


_REMEMBERED = 200
"""characters; longer answers are not cached"""


@lru_cache(maxsize=16384)
def _key(found: str, scorer: str) -> Hashable:
    return _known(scorer).key(found)


def exact_match_math(answer: str, target: str) -> int:
    """The ``math`` scorer: 1 if the answer in a text is the same mathematics as the target."""
    return _PLAIN["math"].score(answer, target)


def exact_match_text(answer: str, target: str) -> int:
    """The ``text`` scorer: 1 if the answer in a text is the same text as the target."""
    return _PLAIN["text"].score(answer, target)


# math


def _find_math(text: str, target: str | None, asked: Asked) -> str:
    if plain_number(text) is not None or (target is not None and text.strip() == target.strip()):
        return text.strip()
    if target is not None and isinstance(_target(target), Words):
        return answer_in(text, "text")
    return answer_in(text)


def _same_math(answer: str, target: str, asked: Asked) -> bool:
    left = plain_number(answer)
    if left is not None:
        right = plain_number(target)
        if right is not None and "%" not in target:
            return left == right and _same_money(answer, target)
    if not answer.strip() or not target.strip():
        return False
    if answer.strip() == target.strip():
        return True
    return _same_mathematics_or_words(answer, target)


@remembered(8192)
def _same_mathematics_or_words(answer: str, target: str) -> bool:
    wanted, given = _target(target), read(answer)
    if same_form(given, wanted, same_mathematics):
        return True
    if isinstance(wanted, Words):
        return _says(answer, wanted) or same_text(answer, target)
    if isinstance(wanted, Expression) and len(wanted.text) == 1 and r"\text" in target:
        return isinstance(given, Expression) and given.text.upper() == wanted.text
    return False


@remembered(4096)
def _target(target: str) -> Form:
    """The form of a target; from a whole solution the answer is extracted first."""
    form = read(target)
    if isinstance(form, Words) and ("\\boxed" in target or "####" in target):
        return read(answer_in(target))
    return form


_REASON = re.compile(
    r"(?:,|;|\s+-)?\s+(?:because|since|as|so|which|who|for|has|have|had|is|was|wins|won)\b.*|,\s+\w+\s+\w+.*",
    re.DOTALL,
)
_SUBJECT = re.compile(
    r"^.{0,200}\b(?:is|are|was|were|be|faces|due|called|named|on(?: a)?)\s+", re.DOTALL
)
_DENIAL = re.compile(r"\b(?:not|n't|never|neither|nor|cannot)\b|n't\b", re.IGNORECASE)


def _says(answer: str, wanted: Words) -> bool:
    """Whether a sentence says these words after its verb or as its subject."""
    if len(answer) > 400:
        return False
    begin = _REASON.sub("", answer)
    if read(begin) == wanted:
        return True
    if _DENIAL.search(answer):
        return False
    return any(read(part) == wanted for part in (_SUBJECT.sub("", answer), _SUBJECT.sub("", begin)))


def _key_math(answer: str) -> Hashable:
    return key_of(read(answer))


# text


def _find_text(text: str, target: str | None, asked: Asked) -> str:
    if target is not None and text.strip() == target.strip():
        return text
    if target is not None and same_text(whole := after_thinking(text), target):
        return whole
    return answer_in(text, "text")


def _same_words(answer: str, target: str, asked: Asked) -> bool:
    left, right = plain_number(answer), plain_number(target)
    if left is not None and right is not None:
        return left == right and _same_money(answer, target)
    return same_text(answer, target)


def _key_text(answer: str) -> Hashable:
    number = plain_number(answer)
    if number is not None:
        return number
    return normalise_text(answer, articles=False) or normalise_text(answer)


# number


def _find_number(text: str, target: str | None, asked: Asked) -> str:
    return text.strip() if plain_number(text) is not None else answer_in(text)


def _same_number(answer: str, target: str, asked: Asked) -> bool:
    given, wanted = read(answer), read(target)
    return (
        isinstance(given, Number)
        and isinstance(wanted, Number)
        and _same_money(answer, target)
        and same_form(given, wanted, lambda *_: False)
    )


# choice


def _find_choice(text: str, target: str | None, asked: Asked) -> str:
    found = answer_in(text, "choice")
    if _chosen(found, asked) is None and len(text) < 1000:
        whole = after_thinking(text).strip()
        return whole if _chosen(whole, asked) is not None else found
    return found


def _chosen(answer: str, asked: Asked) -> str | None:
    listed = option_texts(asked.question) if asked.question else {}
    texts = tuple(listed.values()) if len(listed) == len(asked.options) else ()
    if not asked.options and listed:
        return chosen(answer, tuple(listed), tuple(listed.values()))
    return chosen(answer, asked.options, texts)


def _same_choice(answer: str, target: str, asked: Asked) -> bool:
    wanted = _chosen_target(target, asked)
    return wanted is not None and _chosen(answer, asked) == wanted


def _chosen_target(target: str, asked: Asked) -> str | None:
    if asked.options:
        stripped = [option.strip() for option in asked.options]
        if target.strip() in stripped:
            return labels_of(asked.options)[stripped.index(target.strip())]
    return _chosen(target, asked)


def _key_choice(answer: str) -> Hashable:
    label = chosen(answer, ())
    return label or _key_text(answer)


# auto

_SIGNS = re.compile(r"\\[a-zA-Z]|[\^$%/=<>_]|[0-9a-z)]\s*[+*]\s*[0-9a-z(]")
_LETTERS_IN = re.compile(r"[a-zA-Z]{2,}")


@remembered(4096)
def _is_mathematical(target: str) -> bool:
    """Whether a target is a number, a formula or a list of them, and not words or a name."""
    if plain_number(target) is not None:
        return True
    if not is_solid(target):
        return False
    form = read(target)
    if isinstance(form, Expression):
        return _SIGNS.search(tidy(target)) is not None or (len(target) == 1 and target.islower())
    named = _LETTERS_IN.findall(re.sub(r"\\[a-zA-Z]+", "", target))
    return all(map(is_unit_word, named)) or spoken_number(target) is not None


def _kind_of(target: str, asked: Asked) -> str:
    bare = target.strip()
    if asked.options or (len(bare) == 1 and bare in LETTERS):
        return "choice"
    return "math" if _is_mathematical(bare) else "text"


def _key_auto(answer: str) -> Hashable:
    form = read(answer)
    if isinstance(form, Words):
        return _key_text(answer)
    letter = isinstance(form, Expression) and len(form.text) == 1
    return ("letter", form.text.upper()) if letter else key_of(form)  # type: ignore[union-attr]


def _find_auto(text: str, target: str | None, asked: Asked) -> str:
    if target is None:
        kind: Kind = "choice" if asked.options else "mathematics"
        found = answer_in(text, kind)
        return found if kind == "choice" or is_solid(found) else answer_in(text, "text")
    return _PLAIN[_kind_of(target, asked)].finds(text, target, asked)


def _same_auto(answer: str, target: str, asked: Asked) -> bool:
    return _PLAIN[_kind_of(target, asked)].compares(answer, target, asked)


# user-defined


def _regex(pattern: str) -> Scorer:
    try:
        compiled = Pattern(pattern)
    except ValueError as error:
        raise UserError(f"scorer regex:{pattern}: not a regular expression: {error}") from None

    def find(text: str, target: str | None, asked: Asked) -> str:
        return compiled.last_in(after_thinking(text))

    return Scorer(f"regex:{pattern}", find, _same_words, _key_text)


@lru_cache(maxsize=64)
def _python(path: str) -> Scorer:
    function = imported(path)
    if isinstance(function, str):
        raise UserError(f"scorer python:{path}: {function}")
    worker = Worker("rlbudget.tasks.scorers:called", path, growth=None)

    def same(answer: str, target: str, asked: Asked) -> bool:
        said = worker.ask(path, answer, target, seconds=_PYTHON_SECONDS, cpu_seconds=_PYTHON_CPU)
        if isinstance(said, bool):
            return said
        problem = said or f"no result in {_PYTHON_SECONDS:g} s, {_PYTHON_CPU} s of processor time"
        raise UserError(
            f"scorer python:{path} failed on an answer of {len(answer)} characters: {problem}"
        )

    return Scorer(
        f"python:{path}", lambda t, _, a: after_thinking(t).strip(), same, _key_text, anywhere=True
    )


_PYTHON_SECONDS = 60.0
_PYTHON_CPU = 5


def imported(path: str) -> Callable[[str, str], Any] | str:
    """The function ``PACKAGE.FUNCTION``, or what is wrong with it."""
    module, dot, name = path.rpartition(".")
    before = list(sys.path)
    sys.path.append(os.getcwd())  # a module may lie where the command runs
    try:
        function = getattr(importlib.import_module(module), name) if dot else None
    except (ImportError, AttributeError, ValueError) as error:
        return str(error)
    finally:
        sys.path[:] = before
    return function if callable(function) else "name a function, as PACKAGE.FUNCTION"


def called(path: str, *arguments: str) -> bool | str:
    """What the process of a ``python:`` scorer runs: its verdict, or what went wrong; without
    arguments the function is only imported."""  # fmt: skip
    function = imported(path)
    if isinstance(function, str) or not arguments:
        return str(function)
    try:
        return float(function(*arguments)) >= 1
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _same_money(answer: str, target: str) -> bool:
    """Whether the answer and the target do not name different currencies."""
    if answer.isascii() and target.isascii():
        return True  # ASCII has only one currency sign
    signs = [_currencies(text) for text in (answer, target)]
    return not all(signs) or signs[0] == signs[1]


def _currencies(text: str) -> set[str]:
    """The currency signs in a text; a pair of plain ``$`` delimits a formula."""
    plain = text.count("$") - text.count(r"\$")
    formula = plain % 2 == 0 and plain == text.count("$")
    return {sign for sign in CURRENCIES if sign in text and not (sign == "$" and formula)}


_PLAIN = {
    scorer.name: scorer
    for scorer in (
        Scorer("auto", _find_auto, _same_auto, _key_auto),
        Scorer(
            "exact",
            lambda text, target, asked: after_thinking(text).strip(),
            lambda answer, target, asked: answer == target.strip(),
            str.strip,
            anywhere=True,
        ),
        Scorer("text", _find_text, _same_words, _key_text),
        Scorer("number", _find_number, _same_number, _key_math),
        Scorer("math", _find_math, _same_math, _key_math),
        Scorer("choice", _find_choice, _same_choice, _key_choice),
    )
}
