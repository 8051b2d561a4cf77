"""A row of a log as token ids of a model: the prompt, the thinking, what came after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlbudget.errors import UserError
from rlbudget.models.chat import conversation_ids, has_template
from rlbudget.models.profiles import Profile
from rlbudget.models.reading import read_answer
from rlbudget.models.spelling import check_text, literal_ids, trusted_ids
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.tasks.log_rows import LeftOutError, Logged

if TYPE_CHECKING:
    from rlbudget.models.served import ServedModel
    from rlbudget.models.transformers_model import TransformersModel

_MARK = "rlbudgetquestionrlbudget"
_TOO_LONG = "longer than the model's context"


@dataclass(frozen=True, slots=True)
class Spelled:
    """A decode that was already done, in the tokens of a model."""

    prompt: tuple[int, ...]
    """up to the start of the thinking"""
    thinking: tuple[int, ...]
    question: str
    plain: bool
    """whether the question alone made the prompt"""
    answer: str
    """as the model's profile reads it"""
    answer_tokens: int
    """after the thinking: its end, the answer, the end of the sequence"""


@dataclass(frozen=True, slots=True)
class Speller:
    """Spells rows of a log; made by ``speller_of``."""

    tokenizer: Any
    vocabulary: Vocabulary
    profile: Profile
    prompt_ids: Callable[[str], list[int]]
    """a question's prompt, up to the start of the thinking"""
    room: Callable[[int], int | None]
    """tokens of thinking that fit between a prompt of so many and an answer; None where unknown"""
    around: tuple[str, str] | None
    """the texts before and after a question in the model's prompt, where the template shows it as
    it is"""
    longest: int
    """characters of a token at most"""
    max_tokens: int | None
    """thinking tokens; None: as many as the context holds"""

    def spell(self, logged: Logged) -> Spelled:
        """Raises ``LeftOutError`` for a row that the model cannot read."""
        question, prompt, plain = self._prompt(logged)
        room = self.room(len(prompt))
        thinking = self._thinking(logged.thinking, prompt, room)
        if room is not None and len(thinking) > room:
            raise LeftOutError(
                _TOO_LONG,
                f"{len(prompt)} prompt tokens, {len(thinking)} of thinking and an answer are"
                f" {_TOO_LONG}",
            )
        if self.max_tokens is not None and len(thinking) > self.max_tokens:
            raise LeftOutError("longer than --max-tokens", f"{len(thinking)} thinking tokens are"
                               f" more than {self.max_tokens}")  # fmt: skip
        profile, vocabulary = self.profile, self.vocabulary
        answer = literal_ids(self.tokenizer, logged.answer[: self.longest * _ANSWER])
        if logged.closing:
            closing = len(trusted_ids(self.tokenizer, profile.end_of_thinking))
        else:
            closing = len(vocabulary.exit_ids)
        read = read_answer(answer, vocabulary, profile, profile.answer_stop)
        if not read:
            raise LeftOutError("without an answer", "there is no answer after the thinking")
        return Spelled(
            prompt=tuple(prompt),
            thinking=tuple(thinking),
            question=question,
            plain=plain,
            answer=read,
            answer_tokens=closing + len(answer) + (not logged.cut),
        )

    def _prompt(self, logged: Logged) -> tuple[str, list[int], bool]:
        question = logged.question
        room = self.room(0)
        if room is not None and len(question) > max(room, 0) * self.longest:
            raise LeftOutError(_TOO_LONG, f"a question of {len(question):,} characters is"
                               f" {_TOO_LONG}")  # fmt: skip
        if logged.messages and not has_template(self.tokenizer):
            raise LeftOutError(
                "of conversations without a chat template",
                f"{len(logged.messages)} messages, and the model has no chat template",
            )
        try:
            if logged.messages:
                given = [(message.role, message.content) for message in logged.messages]
                return question, conversation_ids(self.tokenizer, given), False
            if logged.rendered:
                inside = self._inside(question)
                if inside is None:
                    return question, trusted_ids(self.tokenizer, question), False
                question = inside
            ids = self.prompt_ids(question)
        except UserError as error:
            raise LeftOutError("that the model cannot read", str(error)) from None
        if len(ids) <= len(self.prompt_ids("")):
            raise LeftOutError(
                "that the model cannot read", "the question is no token to this model"
            )
        return question, ids, True

    def _inside(self, prompt: str) -> str | None:
        """The question of a prompt under the model's own template; None for another prompt."""
        if self.around is None:
            return None
        before, after = self.around
        if len(prompt) > len(before + after) and prompt.startswith(before):
            for end in (after, after.rstrip("\n")):
                if prompt.endswith(end):
                    return prompt[len(before) : len(prompt) - len(end)]
        return None

    def _thinking(self, text: str, prompt: list[int], room: int | None) -> list[int]:
        if room is not None and len(text) > max(room, 0) * self.longest:
            raise LeftOutError(_TOO_LONG, f"a thinking of {len(text):,} characters is {_TOO_LONG}")
        if self.vocabulary.text(prompt[-1:], special=True).endswith("\n"):
            text = text.removeprefix("\n")  # servers hand it out with the thinking
        try:
            ids = literal_ids(self.tokenizer, text)
        except UserError as error:
            raise LeftOutError("that the model cannot read", str(error)) from None
        pieces = self.vocabulary.pieces
        if len(ids) > 1 and text[:1] != " " and pieces[ids[0]] == "\u2581":
            ids = ids[1:]  # SentencePiece puts a space before any text
        if not ids:
            raise LeftOutError("that the model cannot read", "the thinking is no token to it")
        return ids


_ANSWER = 100_000
"""tokens of an answer at most; what comes after them is not read"""


def speller_of(model: TransformersModel, max_tokens: int | None) -> Speller:
    """How rows of a log are spelled for a model that is loaded here."""
    return _speller(model, model.prompt_ids, model.room, max_tokens)


def served_speller_of(model: ServedModel, max_tokens: int | None) -> Speller:
    """How rows of a log are spelled for a model behind a server."""
    profile, vocabulary = model.profile, model.vocabulary
    after = profile.max_answer_tokens + len(vocabulary.exit_ids)

    def prompt_ids(question: str) -> list[int]:
        check_text(question)
        return profile.prompt(question, model.tokenizer)

    def room(prompt: int) -> int | None:
        return None if model.context is None else model.context - prompt - after

    return _speller(model, prompt_ids, room, max_tokens)


def _speller(
    model: TransformersModel | ServedModel,
    prompt_ids: Callable[[str], list[int]],
    room: Callable[[int], int | None],
    max_tokens: int | None,
) -> Speller:
    vocabulary = model.vocabulary
    shown = vocabulary.text(prompt_ids(_MARK), special=True)
    before, mark, after = shown.partition(_MARK)
    longest = max(map(len, vocabulary.pieces))
    around = (before, after) if mark else None
    return Speller(
        model.tokenizer, vocabulary, model.profile, prompt_ids, room, around, longest, max_tokens
    )
