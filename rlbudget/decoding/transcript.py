"""The tokens of a request since its prompt, and their text."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlbudget.models.spelling import trusted_ids
from rlbudget.models.vocabulary import Vocabulary


@dataclass(slots=True)
class Transcript:
    """What was written; ``texts`` stay empty where an engine gives ids."""

    vocabulary: Vocabulary
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """what each token adds to the text"""
    answer_from: int = 0
    """place of the first token after the exit text or the end of the thinking"""

    def clear(self) -> None:
        """Begin again: what stood there was no thought."""
        self.ids.clear()
        self.texts.clear()

    def text(self, start: int, stop: int) -> str:
        """Of a range of tokens, special ones included."""
        if self.texts:
            return "".join(self.texts[start:stop])
        return self.vocabulary.text(self.ids[start:stop], special=True)

    def added(self, start: int, stop: int) -> str:
        """What a range of tokens adds to the text of those before it."""
        if self.texts:
            return "".join(self.texts[start:stop])
        return self.vocabulary.added(self.ids[:stop], start)

    @property
    def answer_ids(self) -> list[int]:
        """The tokens of the answer."""
        if self.texts:
            spelled = "".join(self.texts[self.answer_from :])
            return trusted_ids(self.vocabulary.tokenizer, spelled)
        return self.ids[self.answer_from :]
