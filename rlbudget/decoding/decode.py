"""Decoding live under a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlbudget.policy.controller import Controller, Reason
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.trace import PROBE_TOKENS, Probe

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel
    from rlbudget.strategies.correction.correct import Correction


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer, what it cost, and where and why its thinking ended."""

    answer: str
    """the answer that was found in what the model wrote, as the traces' scorer finds it"""
    text: str
    """everything after the prompt: thinking, end of thinking, answer"""
    thinking_tokens: int
    probe_tokens: int
    """tokens of all trial answers that were made"""
    answer_tokens: int
    """every token after the thinking"""
    stopped: bool
    """whether the policy ended the thinking"""
    stopped_at: int | None
    """thinking tokens at the stop"""
    reason: Reason
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    message: str | None
    """what went wrong with the policy, with the correction, or with the model's numbers"""
    resumed: int = 0
    """how often a correction took an exit back and went on thinking"""
    doubted: bool = False
    """whether a correction finds that a second model should answer instead"""

    @property
    def total_tokens(self) -> int:
        """All tokens that were paid for, the prompt's left out."""
        return self.thinking_tokens + self.probe_tokens + self.answer_tokens


def decode(
    model: TransformersModel,
    question: str,
    policy: StopPolicy,
    *,
    token_price: float,
    task: str = "",
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
    stride: int | None = None,
    probe_tokens: int | None = None,
    correction: Correction | None = None,
) -> Decoded:
    """Answer ``question``, thinking as long as ``policy`` finds it worth ``token_price``.

    ``token_price`` is reward lost per token and must lie in the policy's range; ``task`` is the
    request's, for a policy that is told tasks. ``stride``,
    ``max_tokens``, ``temperature`` and ``probe_tokens`` left out are those of the traces the policy
    was trained on, else the profile's. With the ``row_seed`` of a recorded trace and its
    settings the decode is that trace's, up to the stop. A policy that raises or says NaN does not
    cost the answer: the decode goes on to its natural end, and ``reason`` and ``message`` say so.
    ``correction`` looks at the answer of a stop and may go on thinking; if it fails, the answer
    stays and ``message`` says so. Raises ``UserError`` for a price outside the range and for
    settings out of range.
    """
    controller = Controller(policy, token_price=token_price, question=question, task=task)
    recorded: Mapping[str, Any] = getattr(policy, "recorded", {})
    scorer = str(recorded.get("scorer", "auto"))
    stride = recorded.get("stride") if stride is None else stride
    max_tokens = recorded.get("max_tokens") if max_tokens is None else max_tokens
    temperature = recorded.get("temperature") if temperature is None else temperature
    if probe_tokens is None:
        probe_tokens = recorded.get("probe_tokens", PROBE_TOKENS)
    batch = model.begin(
        [question], [seed], temperature=temperature, max_tokens=max_tokens, stride=stride,
    )  # fmt: skip
    corrector = None
    if correction is not None and not correction.off:
        from rlbudget.strategies.correction.corrector import (  # needs pyarrow
            Corrector,
            exit_corrected,
        )

        corrector = Corrector(correction, probe_tokens=probe_tokens, question=question)
    charged = 0
    probability: float | None = None

    def trial_answer() -> Probe:
        nonlocal charged
        trial = batch.fork_probes([0], probe_tokens)[0]
        charged += trial.tokens
        return Probe(trial.answer, trial.confidence, trial.tokens)

    while True:
        batch.advance()
        if not len(batch.at_checkpoint):
            break
        thinking = int(batch.thinking_tokens([0])[0])
        signals = {name: float(column[0]) for name, column in batch.signals([0]).items()}
        if corrector is not None:
            corrector.take(signals, thinking)
        probe = trial_answer() if controller.needs_probe else None
        decision = controller.at_checkpoint(signals, thinking, probe)
        if decision.probe:
            decision = controller.looked(trial_answer())
        if controller.failed is None:
            probability = decision.stop_probability
        if decision.stop and corrector is not None:
            kept = exit_corrected(batch, corrector)
            ended: Reason = "natural" if kept.natural else "max_tokens"
            return Decoded(
                answer=extracted(kept.answer, scorer),
                text=kept.text,
                thinking_tokens=kept.thinking_tokens,
                probe_tokens=charged,
                answer_tokens=kept.answer_tokens,
                stopped=kept.stopped_at is not None,
                stopped_at=kept.stopped_at,
                reason=ended if kept.stopped_at is None else "policy",
                stop_probability=probability,
                message=kept.message or batch.problem(0),
                resumed=kept.resumed,
                doubted=kept.doubted,
            )
        if decision.stop:
            text = batch.thinking_text(0) + model.profile.exit_text
            answer = batch.stop([0])[0]
            return Decoded(
                answer=extracted(answer.answer, scorer),
                text=text + batch.vocabulary.text(answer.ids, special=True),
                thinking_tokens=thinking,
                probe_tokens=charged,
                answer_tokens=answer.answer_tokens,
                stopped=True,
                stopped_at=thinking,
                reason="policy",
                stop_probability=probability,
                message=batch.problem(0),
            )
    end = batch.final[0]
    assert end is not None
    reason: Reason = "natural" if end.natural else "max_tokens"
    return Decoded(
        answer=extracted(end.answer, scorer),
        text=end.text + end.rest,
        thinking_tokens=end.thinking_tokens,
        probe_tokens=charged,
        answer_tokens=end.answer_tokens,
        stopped=False,
        stopped_at=None,
        reason=reason if controller.failed is None else "policy_failed",
        stop_probability=probability,
        message=batch.problem(0)
        or (controller.failed and f"the policy failed: {controller.failed}"),
    )
