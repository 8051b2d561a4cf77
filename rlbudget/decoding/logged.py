"""Decoding with a decision log, where a share of the requests is audited.

An audited request, drawn by chance alone, runs to its natural end and is recorded like any trace,
with the exit at every checkpoint. Its user gets the full answer; the policy is led past the
recorded checkpoints to find its stop, so what that would have given is known exactly.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlbudget.decoding.decode import Decoded, decode
from rlbudget.decoding.record import record_one
from rlbudget.errors import UserError
from rlbudget.policy.controller import Controller, Reason
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.feedback.audit import audited
from rlbudget.strategies.feedback.log import DecisionLog, LoggedRequest, Stop, now
from rlbudget.tasks.scorers import extracted, scorer_of_task
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.trace import PROBE_TOKENS, Trace, scorer_of

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a policy comes from, as the log keeps it."""

    policy: str
    """digest"""
    registry_version: int | None = None
    strategy: str | None = None
    """digest of what stands over it"""


@dataclass(frozen=True, slots=True)
class Logged:
    """An answer and the line that its log got."""

    decoded: Decoded
    """what the user gets"""
    served: LoggedRequest


def decode_logged(
    model: TransformersModel,
    question: str,
    policy: StopPolicy,
    *,
    token_price: float,
    log: DecisionLog,
    origin: Origin,
    audit_share: float = 0.0,
    request_id: str | None = None,
    task: str = "",
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
    stride: int | None = None,
    probe_tokens: int | None = None,
) -> Logged:
    """``decode``, and note it in ``log``; a share of the requests is audited.

    ``request_id`` left out is drawn at random; whether a request is audited depends on it and on
    ``audit_share`` only. ``task`` names the scorer of its answers. The rest is as for ``decode``.
    Raises ``UserError`` as that does, and for a share out of [0, 1]; whatever befalls the log, the
    answer is returned.
    """
    if not 0 <= audit_share <= 1:
        raise UserError(f"the audit share is {audit_share:g}: it must lie in [0, 1]")
    if request_id is not None and (not request_id.strip() or "\0" in request_id):
        raise UserError("the request id must not be blank or hold a NUL character")
    request_id = request_id or uuid.uuid4().hex
    drawn = audited(request_id, audit_share)
    recorded: Mapping[str, Any] = getattr(policy, "recorded", {})
    if drawn:
        controller = Controller(policy, token_price=token_price, question=question, task=task)
        full = record_one(
            model,
            Task(
                task,
                (Question(_question_id(task, question), question, ""),),
                _unscored,
                scorer_of_task(task),
            ),
            seed=seed,
            stride=recorded.get("stride") if stride is None else stride,
            max_tokens=recorded.get("max_tokens") if max_tokens is None else max_tokens,
            temperature=recorded.get("temperature") if temperature is None else temperature,
            probe_tokens=recorded.get("probe_tokens", PROBE_TOKENS)
            if probe_tokens is None
            else probe_tokens,
            store_text=log.store_text,
        )
        trace = replace(full.trace, trace_id=request_id)
        stop = stop_of(trace, controller)
        decoded = _full(trace, full.text, stop, controller.failed)
        log.audit(trace)
    else:
        decoded = decode(
            model, question, policy, token_price=token_price, task=task, seed=seed,
            temperature=temperature,
            max_tokens=max_tokens, stride=stride, probe_tokens=probe_tokens,
        )  # fmt: skip
        stop = Stop(
            decoded.reason, decoded.stopped_at, decoded.stop_probability,
            decoded.thinking_tokens, decoded.probe_tokens, decoded.answer_tokens,
        )  # fmt: skip
    served = LoggedRequest(
        request_id=request_id,
        time=now(),
        policy=origin.policy,
        registry_version=origin.registry_version,
        strategy=origin.strategy,
        token_price=token_price,
        audited=drawn,
        stop=stop,
        question=question,
        answer=decoded.answer,
    )
    log.decision(served)
    return Logged(decoded, served)


def stop_of(trace: Trace, controller: Controller) -> Stop:
    """Lead a fresh controller past the checkpoints of a trace, as a live decode would."""
    charged = 0
    probability: float | None = None
    for point in trace.checkpoints:
        probe = point.probe if controller.needs_probe else None
        charged += probe.tokens if probe else 0
        decision = controller.at_checkpoint(point.signals, point.thinking_tokens, probe)
        if decision.probe and point.probe is not None:
            charged += point.probe.tokens
            decision = controller.looked(point.probe)
        if controller.failed is None:
            probability = decision.stop_probability
        if decision.stop:
            return Stop(
                "policy", point.thinking_tokens, probability,
                point.thinking_tokens, charged, point.exit.answer_tokens,
            )  # fmt: skip
    natural: Reason = "natural" if trace.meta["natural"] else "max_tokens"
    reason: Reason = natural if controller.failed is None else "policy_failed"
    final = trace.final
    return Stop(reason, None, probability, final.thinking_tokens, charged, final.answer_tokens)


def _full(trace: Trace, text: str, stop: Stop, failed: str | None) -> Decoded:
    """The full decode, for the user of an audited request, who pays for no trial answer."""
    return Decoded(
        answer=extracted(trace.final.answer, scorer_of(trace)),
        text=text,
        thinking_tokens=trace.final.thinking_tokens,
        probe_tokens=0,
        answer_tokens=trace.final.answer_tokens,
        stopped=False,
        stopped_at=None,
        reason="natural" if trace.meta["natural"] else "max_tokens",
        stop_probability=stop.stop_probability,
        message=failed and f"the policy failed: {failed}",
    )


def _question_id(task: str, question: str) -> str:
    """The same for the same question, however often it is asked."""
    return f"{task or 'request'}-{hashlib.sha256(question.encode()).hexdigest()[:16]}"


def _unscored(question: Question, answer: str) -> int:
    return 0
