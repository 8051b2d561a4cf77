"""Decoding live with a second model that refines doubtful exits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlbudget.decoding.decode import Decoded, decode
from rlbudget.policy.stop_policy import Full, StopPolicy

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel
    from rlbudget.strategies.correction.correct import Correction

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class Refined:
    """An answer, and what both models spent on it."""

    answer: str
    text: str
    """what the first model wrote; then what the second did, where it was asked"""
    first: Decoded
    second: Decoded | None
    """what the second model did, where it was asked and answered"""
    ratio: float
    """what a token of the second model costs, in tokens of the first"""
    message: str | None
    """what went wrong"""

    @property
    def total_tokens(self) -> float:
        """All tokens that were paid for, as those of the first model; the prompts' left out."""
        other = 0 if self.second is None else self.second.total_tokens
        return self.first.total_tokens + self.ratio * other


def refined(
    second: TransformersModel,
    question: str,
    first: Decoded,
    correction: Correction,
    *,
    token_price: float,
    second_policy: StopPolicy | None = None,
    task: str = "",
    seed: int = 0,
) -> Refined:
    """Let the second model answer where the exit of the first is doubted (``first.doubted``).

    ``correction`` is one by a second model (``ValueError`` for another); ``token_price`` is per
    token of the first model, the second is served under ``second_policy`` at the nearest price that
    it knows, in full without one, and with the settings of the traces it was fitted to. A second
    model that fails does not cost the answer: the first one stays, and ``message`` says so.
    """
    refiner = correction.second
    if refiner is None:
        raise ValueError("this correction thinks on with the same model: it has no second one")
    if not first.doubted:
        return Refined(first.answer, first.text, first, None, refiner.ratio, first.message)
    policy: StopPolicy = Full() if second_policy is None else second_policy
    low, high = policy.price_range
    recorded: Mapping[str, Any] = refiner.recorded
    try:
        other = decode(
            second, question, policy, task=task, seed=seed,
            token_price=min(max(token_price / refiner.ratio, low), high),
            temperature=recorded.get("temperature"), max_tokens=recorded.get("max_tokens"),
            stride=recorded.get("stride"), probe_tokens=recorded.get("probe_tokens"),
        )  # fmt: skip
    except Exception as error:  # whatever it is, there is an answer
        message = f"the second model failed: {str(error) or type(error).__name__}"
        _log.warning("%s; the first answer stays", message)
        return Refined(first.answer, first.text, first, None, refiner.ratio, message)
    return Refined(
        other.answer, first.text + other.text, first, other, refiner.ratio, other.message
    )


def decode_refined(
    model: TransformersModel,
    second: TransformersModel,
    question: str,
    policy: StopPolicy,
    correction: Correction,
    *,
    token_price: float,
    second_policy: StopPolicy | None = None,
    task: str = "",
    seed: int = 0,
    **settings: Any,
) -> Refined:
    """``decode``, and hand a doubted exit to the second model.

    ``settings`` are those of ``decode`` for the first model. Raises as ``decode`` and ``refined``.
    """
    first = decode(
        model, question, policy, token_price=token_price, task=task, seed=seed,
        correction=correction, **settings,
    )  # fmt: skip
    return refined(
        second, question, first, correction,
        token_price=token_price, second_policy=second_policy, task=task, seed=seed,
    )  # fmt: skip
