"""A correction at work on one live decode, as ``correct.py`` does on a replay.

The policy's stop writes an answer on a fork of the decode. Where the doubt in it is too high, the
decode itself goes on from where it stood, and answers again ``budget`` tokens later. Every token
is in the ledger. Whatever fails after the first answer, the best answer so far is given. Where a
second model refines, the exit is only marked as doubted: ``rlbudget.decoding.refined`` asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.errors import UserError
from rlbudget.policy.observation import Observer
from rlbudget.signals.questions import context_signals
from rlbudget.signals.tokens import SIGNALS
from rlbudget.strategies.correction.correct import Correction
from rlbudget.strategies.correction.written import CONFIDENCE, WRITTEN_SIGNALS, written_signals

if TYPE_CHECKING:
    from rlbudget.models.decode_batch import DecodeBatch
    from rlbudget.models.reading import ExitResult

_ROW = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Kept:
    """The answer that is given, and what all of it cost."""

    answer: str
    text: str
    """the thinking before the answer that is kept, the end of the thinking, the answer"""
    thinking_tokens: int
    answer_tokens: int
    """of all answers written"""
    stopped_at: int | None
    """thinking tokens at the exit whose answer is kept; None for the natural end"""
    resumed: int
    """how often an exit was taken back"""
    natural: bool
    """False where the thinking, resumed, was cut at the cap"""
    message: str | None
    """what went wrong with the correction"""
    doubted: bool = False
    """whether a second model should answer instead"""


class Corrector:
    """The doubt in the exits of one decode; not to be shared between decodes or threads.

    ``question`` is needed by a doubt model that looks at it. Raises ``UserError`` for one that
    needs signals which no live decode makes.
    """

    def __init__(
        self, correction: Correction, *, probe_tokens: int, question: str | None = None
    ) -> None:
        needed = {feature.partition(".")[0] for feature in correction.doubt.features}
        self._context = {} if question is None else context_signals(question)
        known = {*SIGNALS, *WRITTEN_SIGNALS, "thinking_tokens", *self._context}
        if unknown := sorted(needed - known):
            raise UserError(
                "the correction needs signals that are not made from tokens: " + ", ".join(unknown)
            )
        if CONFIDENCE in needed and probe_tokens < 1:
            raise UserError("the correction was fitted to traces with trial answers: decode with"
                            " probe_tokens of at least 1")  # fmt: skip
        self.correction = correction
        self.failed: str | None = None
        """why the correction is off, if it is"""
        self._probe_tokens = probe_tokens
        self._needs_trial = CONFIDENCE in needed
        self._observer = Observer(correction.doubt.features, 1)
        self._now: tuple[int, Mapping[str, float]] | None = None

    def take(self, signals: Mapping[str, float], thinking_tokens: int) -> None:
        """Take the next checkpoint; to be called at every one. Never raises."""
        try:
            if self._now is not None:
                self._observe({})
            self._now = thinking_tokens, signals
        except Exception as error:  # whatever it is, the decode must go on
            self.fail(error)

    def doubt(self, written: ExitResult, batch: DecodeBatch) -> float:
        """In an exit just written at the checkpoint taken last."""
        trial = None
        if self._needs_trial:
            trials = batch.probes_of([written], self._probe_tokens)
            if trials is None:
                raise ValueError("the model's answers do not begin like its trial answers")
            trial = trials[0]
        seen = self._observe(written_signals(written, trial, thinking=batch.thinking_text(0)))
        self._now = None
        doubt = float(self.correction.doubt.risk(seen)[0])
        if not np.isfinite(doubt):
            raise ValueError(f"its doubt is {doubt}")
        return doubt

    def fail(self, error: Exception) -> None:
        """Be off from here on."""
        self.failed = str(error) or type(error).__name__

    def _observe(
        self, written: Mapping[str, float]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        assert self._now is not None
        tokens, signals = self._now
        given = {**self._context, **signals, **written}
        columns = {name: [value] for name, value in given.items()}
        return self._observer.update(_ROW, [tokens], columns)


def exit_corrected(batch: DecodeBatch, corrector: Corrector) -> Kept:
    """Stop row 0, which stands at a checkpoint that ``corrector`` has taken; perhaps think on."""
    correction = corrector.correction
    written = batch.fork_exits([0])[0]
    thinking = int(batch.thinking_tokens([0])[0])
    paid, resumed, handed = written.answer_tokens, 0, False

    def kept_exit(written: ExitResult, at: int) -> Kept:
        text = batch.thinking_text(0) + batch.profile.exit_text
        return Kept(
            written.answer,
            text + batch.vocabulary.text(written.ids, special=True),
            at, written.answer_tokens, at, 0, True, None,
        )  # fmt: skip

    best = kept_exit(written, thinking)
    try:
        if corrector.failed is None and not correction.off:
            doubt = corrector.doubt(written, batch)
            handed = doubt > correction.threshold and correction.second is not None
            while doubt > correction.threshold and resumed < correction.rounds and not handed:
                start = thinking
                while True:
                    batch.advance()
                    if not len(batch.at_checkpoint):
                        break
                    thinking = int(batch.thinking_tokens([0])[0])
                    signals = {name: float(v[0]) for name, v in batch.signals([0]).items()}
                    corrector.take(signals, thinking)
                    if corrector.failed is not None:
                        raise ValueError(corrector.failed)
                    if correction.budget is not None and thinking >= start + correction.budget:
                        break
                resumed += 1
                if (end := batch.final.get(0)) is not None:
                    return Kept(
                        end.answer, end.text + end.rest, end.thinking_tokens,
                        paid + end.answer_tokens, None, resumed, end.natural, None,
                    )  # fmt: skip
                written = batch.fork_exits([0])[0]
                paid += written.answer_tokens
                doubted = corrector.doubt(written, batch)
                if doubted <= doubt:
                    best, doubt = kept_exit(written, thinking), doubted
    except Exception as error:  # whatever it is, there is an answer
        corrector.fail(error)
    if not batch.done:
        batch.drop([0])
    message = corrector.failed and f"the correction failed: {corrector.failed}"
    return Kept(
        best.answer, best.text, thinking, paid, best.stopped_at, resumed, True, message, handed
    )
