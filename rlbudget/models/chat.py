"""A question under a model's own chat template.

The template is rendered around a mark, and the question's tokens are put in its place: so nothing
in a question is a control token, and how the prompt ends is known before the question is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.spelling import check_text, control_ids, literal_ids, trusted_ids

_MARK = "rlbudgetquestionrlbudget"
_OPEN, _CLOSE = "<think>", "</think>"
_SWITCH = re.compile(r"\b(?!no_|non_|disable|skip|without|hide)\w*(?:think|reason)\w*")

Switches = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Switched:
    """How a template is rendered."""

    switches: Switches
    """its own settings, by which it asks for thinking"""
    opens: bool
    """whether the prompt ends inside an open thinking"""
    trims: tuple[bool, bool]
    """whether it strips white space before and after the question"""


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_ids(tokenizer: Any, question: str, *, after: str = "") -> list[int]:
    """Token ids of the question and of our own text ``after`` it as a user's turn, up to the
    model's own. Raises ``UserError`` for a template that fails."""  # fmt: skip
    return _filled(tokenizer, question, after, _asked(tokenizer, _source(tokenizer), after, False))


def thinking_ids(tokenizer: Any, question: str) -> list[int]:
    """Token ids of the question as a user's turn, up to and including the start of the thinking.

    A template that closes the thinking unless it is told to think is told so. Raises ``UserError``
    for one that closes it whatever it is told.
    """
    asked = _asked(tokenizer, _source(tokenizer), "", True)
    ids = _filled(tokenizer, question, "", asked)
    return ids if asked.opens else ids + trusted_ids(tokenizer, _OPEN + "\n")


def conversation_ids(
    tokenizer: Any,
    messages: Sequence[tuple[str, str]],
    settings: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation (role, text), up to and including the start of the thinking.

    With ``settings`` of the template it is rendered by those alone, and ends as they say. Nothing
    in a message becomes a control token. Raises ``UserError`` as ``thinking_ids`` does, and for a
    template that does not show a message.
    """
    if settings is None:
        asked = _asked(tokenizer, _source(tokenizer), "", True)
    else:
        asked = Switched(tuple(settings.items()), opens=True, trims=(False, False))
    marks = [f"rlbudget{place}message{place}rlbudget" for place in range(len(messages))]
    given = [
        {"role": role, "content": mark} for (role, _), mark in zip(messages, marks, strict=True)
    ]
    try:
        text = str(
            tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=True, **dict(asked.switches)
            )
        )
    except Exception as error:  # a template is a program of somebody else's
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the model's chat template refuses the conversation: {said}") from None
    apart: list[int] = []
    whole = ""
    for (role, content), mark in zip(messages, marks, strict=True):
        before, shown, text = text.partition(mark)
        if not shown:
            raise UserError(f"the model's chat template does not show a message of the {role}")
        check_text(content)
        apart += trusted_ids(tokenizer, before) + literal_ids(tokenizer, content)
        whole += before + content
    ids = _joined(
        tokenizer, trusted_ids(tokenizer, whole + text), [*apart, *trusted_ids(tokenizer, text)]
    )
    return ids if asked.opens else ids + trusted_ids(tokenizer, _OPEN + "\n")


def _filled(tokenizer: Any, question: str, after: str, asked: Switched) -> list[int]:
    check_text(question)
    before, behind = asked.trims
    question = question.lstrip() if before else question
    question = question.rstrip() if behind else question
    first, *rest = _render(tokenizer, _MARK + after, asked.switches).split(_MARK)
    apart = trusted_ids(tokenizer, first)
    for part in rest:
        apart += literal_ids(tokenizer, question) + trusted_ids(tokenizer, part)
    return _joined(tokenizer, trusted_ids(tokenizer, question.join([first, *rest])), apart)


def _joined(tokenizer: Any, whole: list[int], apart: list[int]) -> list[int]:
    """Read as a whole, words join as the model knows them; but it must be the same prompt."""
    same = control_ids(tokenizer, whole) == control_ids(tokenizer, apart)
    return whole if same else apart


@lru_cache(maxsize=32)
def _asked(tokenizer: Any, source: str, after: str, think: bool) -> Switched:
    switches: Switches = ()
    opens = False
    if think:
        state, switches = _best(tokenizer, source)
        if state == 0:
            raise UserError(
                "the model's chat template ends its prompt with a closed thinking, and none of"
                " its settings opens it: choose the profile plain"
            )
        opens = state == 2
    plain = _render(tokenizer, _MARK + after, switches)
    trims = (
        _render(tokenizer, f" \n{_MARK}{after}", switches) == plain,
        not after and _render(tokenizer, f"{_MARK}\n ", switches) == plain,
    )
    return Switched(switches, opens, trims)


def _best(tokenizer: Any, source: str) -> tuple[int, Switches]:
    """How far the prompt gets, with the settings that bring it there.

    2: inside an open thinking, 1: the model is left to open it, 0: it is closed.
    """
    default = _render(tokenizer, _MARK, ())
    names = sorted(set(_SWITCH.findall(source)))
    every: list[Switches] = [tuple((name, True) for name in names)]
    every += [((name, True),) for name in names]
    every += [((name, word),) for name in names if "mode" in name for word in ("on", "thinking")]
    found: list[tuple[int, Switches]] = [(_state(default), ())]
    for switches in every:
        try:
            text = _render(tokenizer, _MARK, switches)
        except UserError:
            continue  # it wants another kind of value
        if text.count("True") == default.count("True"):  # else it is a text, not a switch
            found.append((_state(text), switches))
    best = max(state for state, _ in found)
    # Told to think rather than not, where both end alike: some say so at another place.
    return next((s, w) for s, w in [*found[1:], found[0]] if s == best)


def _state(text: str) -> int:
    tail = text.rpartition(_MARK)[2]
    opened, closed = tail.rfind(_OPEN), tail.rfind(_CLOSE)
    if opened > closed:
        return 2
    return 0 if closed >= 0 else 1


def _source(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return template if isinstance(template, str) else repr(sorted(dict(template).items()))


def _render(tokenizer: Any, content: str, switches: Switches) -> str:
    """The prompt; ``UserError`` where the template fails or does not show the content."""
    problem = "it does not show the question"
    for shape in (content, [{"type": "text", "text": content}]):
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": shape}],
                tokenize=False,
                add_generation_prompt=True,
                **dict(switches),
            )
        except Exception as error:  # a template is a program of somebody else's
            problem = " ".join(str(error).split())[:200] or type(error).__name__
            continue
        if _MARK in str(text):
            return str(text)
    raise UserError(f"the model's chat template cannot be used: {problem}")
