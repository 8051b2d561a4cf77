"""Decoding live through a cascade: the small model thinks, the large one is asked where it pays."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlbudget.decoding.decode import Decoded, decode
from rlbudget.policy.cascade import Cascade, CascadeDecision, CascadeRequest
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.tasks.scorers import extracted

if TYPE_CHECKING:
    from rlbudget.models.decode_batch import DecodeBatch
    from rlbudget.models.transformers_model import TransformersModel

Left = Literal["stop", "escalate", "natural", "max_tokens", "cascade_failed", "large_failed"]
"""Why the small model was left. ``natural`` and ``max_tokens``: its own end, whose answer was
accepted; ``cascade_failed``: the cascade broke down, and the small model answered at its own end;
``large_failed``: so it did because the large model could not."""

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class CascadeDecoded:
    """An answer, and what both models spent on it."""

    answer: str
    text: str
    """the small model's thinking; then its answer, or all that the large one wrote"""
    small_thinking_tokens: int
    small_answer_tokens: int
    """0 where the large model answered"""
    ratio: float
    """what a token of the small model costs, in tokens of the large one"""
    large: Decoded | None
    """what the large model did, where it was asked"""
    reason: Left
    message: str | None
    """what went wrong"""

    @property
    def total_tokens(self) -> float:
        """All tokens that were paid for, as those of the large model; the prompts' left out."""
        small = self.small_thinking_tokens + self.small_answer_tokens
        return self.ratio * small + (0 if self.large is None else self.large.total_tokens)


def decode_cascade(
    small: TransformersModel,
    large: TransformersModel,
    question: str,
    cascade: Cascade,
    *,
    token_price: float,
    large_policy: StopPolicy | None = None,
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> CascadeDecoded:
    """Answer ``question``, handing over to ``large`` where the cascade finds it worth the price.

    ``token_price`` is reward lost per token of the large model, in the cascade's range; the large
    model is served under ``large_policy`` at the nearest price that it knows, in full if there is
    none. What is left out (``temperature`` and ``max_tokens`` of the small model, all settings of
    the large one) is as in the recordings that the cascade was trained on. With the ``row_seed``
    of recorded traces the decode is theirs, and does what a replay does. A cascade that raises or
    says NaN, or a large model that fails, does not cost the answer: the small model goes on to its
    natural end, and ``reason`` and ``message`` say so. Raises ``UserError`` for a price outside
    the range and for settings out of range.
    """
    request = CascadeRequest(cascade, token_price=token_price, question=question)
    recorded: Mapping[str, Any] = cascade.config["trained"].get("recorded") or {}
    own, theirs = recorded.get("small") or {}, recorded.get("large") or {}
    batch = small.begin(
        [question], [seed],
        temperature=own.get("temperature") if temperature is None else temperature,
        max_tokens=own.get("max_tokens") if max_tokens is None else max_tokens,
        stride=own.get("stride"),
    )  # fmt: skip

    def ask_large() -> Decoded:
        policy = large_policy or Full()
        return decode(
            large, question, policy,
            token_price=nearest_price(token_price, policy.price_range), seed=seed,
            temperature=theirs.get("temperature"), max_tokens=theirs.get("max_tokens"),
            stride=theirs.get("stride"), probe_tokens=theirs.get("probe_tokens"),
        )  # fmt: skip

    failed: tuple[Left, str] | None = None
    while True:
        batch.advance(pause_at_end=True)
        at_end, thinking = not len(batch.at_checkpoint), int(batch.thinking_tokens([0])[0])
        try:
            decision = _decision(request, batch, thinking, at_end)
        except Exception as error:  # whatever it is, the answer must come
            failed = _fault("cascade_failed", "the cascade failed", error)
            break
        if decision.escalate:
            thought = batch.thinking_text(0)
            try:
                asked = ask_large()
            except Exception as error:  # whatever it is, the small model can still answer
                failed = _fault("large_failed", "the large model failed", error)
                break
            return CascadeDecoded(asked.answer, thought + asked.text, thinking, 0,
                                  cascade.ratio, asked, "escalate", asked.message)  # fmt: skip
        if at_end:
            break
        if decision.stop:
            text = batch.thinking_text(0) + small.profile.exit_text
            exit_ = batch.stop([0])[0]
            text += batch.vocabulary.text(exit_.ids, special=True)
            return CascadeDecoded(extracted(exit_.answer), text, thinking, exit_.answer_tokens,
                                  cascade.ratio, None, "stop", None)  # fmt: skip
    while not batch.done:
        batch.advance()
    end = batch.final[0]
    reason: Left = "natural" if end.natural else "max_tokens"
    return CascadeDecoded(
        answer=extracted(end.answer),
        text=end.text + end.rest,
        small_thinking_tokens=end.thinking_tokens,
        small_answer_tokens=end.answer_tokens,
        ratio=cascade.ratio,
        large=None,
        reason=reason if failed is None else failed[0],
        message=None if failed is None else failed[1],
    )


def _decision(
    request: CascadeRequest, batch: DecodeBatch, thinking: int, at_end: bool
) -> CascadeDecision:
    if at_end:
        decision = request.natural_end(thinking)
    else:
        signals = {name: float(column[0]) for name, column in batch.signals([0]).items()}
        decision = request.checkpoint(signals, thinking)
    if not all(map(math.isfinite, decision.chances)):
        raise ValueError(f"its chances are {decision.chances}")
    return decision


def _fault(reason: Left, said: str, error: Exception) -> tuple[Left, str]:
    message = f"{said}: {str(error) or type(error).__name__}"
    _log.warning("%s; the small model answers", message)
    return reason, message
