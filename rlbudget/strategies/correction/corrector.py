"""The doubt in the exits of one live decode, as ``correct.py`` has it on a replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.arrays import Float32s
from rlbudget.errors import UserError
from rlbudget.policy.row_observer import RowObserver
from rlbudget.signals.questions import context_signals
from rlbudget.signals.tokens import SIGNALS
from rlbudget.strategies.correction.correct import Correction
from rlbudget.strategies.correction.written import CONFIDENCE, WRITTEN_SIGNALS, written_signals

if TYPE_CHECKING:
    from rlbudget.models.reading import ExitResult, ProbeResult


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
        self._observer = RowObserver(correction.doubt.features)
        self._now: tuple[int, Mapping[str, float]] | None = None

    def take(self, signals: Mapping[str, float], thinking_tokens: int) -> None:
        """Take the next checkpoint; to be called at every one. Never raises."""
        try:
            if self._now is not None:
                self._observe({})
            self._now = thinking_tokens, signals
        except Exception as error:  # whatever it is, the decode must go on
            self.fail(error)

    def doubt(self, written: ExitResult, trial: ProbeResult | None, thinking: str) -> float:
        """In an exit just written at the checkpoint taken last; ``trial`` is the trial answer it
        begins with, ``thinking`` the text before it."""  # fmt: skip
        if self._needs_trial and trial is None:
            raise ValueError("the model's answers do not begin like its trial answers")
        seen = self._observe(written_signals(written, trial, thinking=thinking))
        self._now = None
        doubt = float(self.correction.doubt.risk(seen[None])[0])
        if not np.isfinite(doubt):
            raise ValueError(f"its doubt is {doubt}")
        return doubt

    def fail(self, error: Exception) -> None:
        """Be off from here on."""
        self.failed = str(error) or type(error).__name__

    def _observe(self, written: Mapping[str, float]) -> Float32s:
        assert self._now is not None
        tokens, signals = self._now
        return self._observer.update(tokens, {**self._context, **signals, **written})
