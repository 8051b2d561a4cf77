"""A row of a log as token ids of a model: the prompt, the thinking, what came after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlbudget.errors import UserError
from rlbudget.models.chat import conversation_ids, has_template
from rlbudget.models.reading import read_answer
from rlbudget.models.spelling import literal_ids, trusted_ids
from rlbudget.tasks.log_rows import LeftOutError, Logged

if TYPE_CHECKING:
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
    answer: str
    """as the model's profile reads it"""
    answer_tokens: int
    """after the thinking: its end, the answer, the end of the sequence"""


@dataclass(frozen=True, slots=True)
class Speller:
    """Spells rows of a log; made by ``speller_of``."""

    model: TransformersModel
    around: tuple[str, str] | None
    """the texts before and after a question in the model's prompt, where the template shows it as
    it is"""
    longest: int
    """characters of a token at most"""
    max_tokens: int | None
    """thinking tokens; None: as many as the context holds"""

    def spell(self, logged: Logged) -> Spelled:
        """Raises ``LeftOutError`` for a row that the model cannot read."""
        question, prompt = self._prompt(logged)
        room = self.model.room(len(prompt))
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
        model = self.model
        tokenizer, vocabulary, profile = model.tokenizer, model.vocabulary, model.profile
        answer = literal_ids(tokenizer, logged.answer[: self.longest * _ANSWER])
        if logged.closing:
            closing = len(trusted_ids(tokenizer, profile.end_of_thinking))
        else:
            closing = len(vocabulary.exit_ids)
        read = read_answer(answer, vocabulary, profile, profile.answer_stop)
        if not read:
            raise LeftOutError("without an answer", "there is no answer after the thinking")
        return Spelled(
            prompt=tuple(prompt),
            thinking=tuple(thinking),
            question=question,
            answer=read,
            answer_tokens=closing + len(answer) + (not logged.cut),
        )

    def _prompt(self, logged: Logged) -> tuple[str, list[int]]:
        question = logged.question
        model = self.model
        try:
            room = model.room(0)
            if room is not None and len(question) > max(room, 0) * self.longest:
                raise LeftOutError(_TOO_LONG, f"a question of {len(question):,} characters is"
                                   f" {_TOO_LONG}")  # fmt: skip
            if logged.messages:
                if not has_template(model.tokenizer):
                    raise LeftOutError(
                        "of conversations without a chat template",
                        f"{len(logged.messages)} messages, and the model has no chat template",
                    )
                given = [(message.role, message.content) for message in logged.messages]
                return question, conversation_ids(model.tokenizer, given)
            if logged.rendered:
                inside = self._inside(question)
                if inside is None:
                    return question, trusted_ids(model.tokenizer, question)
                question = inside
            ids = model.prompt_ids(question)
        except LeftOutError:
            raise
        except UserError as error:
            raise LeftOutError("that the model cannot read", str(error)) from None
        if len(ids) <= len(model.prompt_ids("")):
            raise LeftOutError(
                "that the model cannot read", "the question is no token to this model"
            )
        return question, ids

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
        model = self.model
        if model.vocabulary.text(prompt[-1:], special=True).endswith("\n"):
            text = text.removeprefix("\n")  # servers hand it out with the thinking
        try:
            ids = literal_ids(model.tokenizer, text)
        except UserError as error:
            raise LeftOutError("that the model cannot read", str(error)) from None
        pieces = model.vocabulary.pieces
        if len(ids) > 1 and text[:1] != " " and pieces[ids[0]] == "\u2581":
            ids = ids[1:]  # SentencePiece puts a space before any text
        if not ids:
            raise LeftOutError("that the model cannot read", "the thinking is no token to it")
        return ids


_ANSWER = 100_000
"""tokens of an answer at most; what comes after them is not read"""


def speller_of(model: TransformersModel, max_tokens: int | None) -> Speller:
    """How rows of a log are spelled for a model."""
    shown = model.vocabulary.text(model.prompt_ids(_MARK), special=True)
    before, mark, after = shown.partition(_MARK)
    longest = max(map(len, model.vocabulary.pieces))
    return Speller(model, (before, after) if mark else None, longest, max_tokens)
