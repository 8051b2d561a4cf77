"""What is told of a request that is over: what came of it, its line in the log, its full decode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from rlbudget.decoding.deciding import Decider, Kept
from rlbudget.decoding.decoded import Decoded, Ending
from rlbudget.decoding.transcript import Transcript
from rlbudget.models.reading import read_answer
from rlbudget.strategies.feedback.log import (
    CorrectionEntry,
    Log,
    LoggedRequest,
    ModelTokens,
    Stop,
    now,
)
from rlbudget.traces.trace import Final, Trace


def decoded_of(
    decider: Decider, transcript: Transcript, ending: Ending, kept: Kept | None, *,
    request_id: str | None,
) -> Decoded:  # fmt: skip
    """What came of it; ``kept`` is the exit that stands in for the rest of the decode, if one
    does."""  # fmt: skip
    core, second, at = decider.core, decider.second, ending.thinking_tokens
    if kept is not None:
        at, answer = kept.at, core.answer(kept.written.ids)
        rest = core.profile.exit_text + core.vocabulary.text(kept.written.ids, special=True)
    else:
        answer = core.answer(transcript.answer_ids)
        rest = transcript.text(at, len(transcript.ids))
    stopped = ending.reason == "policy"
    return Decoded(
        answer=answer if second is None else second.answer,
        text=transcript.text(0, at) + (rest if second is None else second.text),
        thinking_tokens=ending.thinking_tokens,
        probe_tokens=0 if decider.audited else ending.probe_tokens,
        answer_tokens=ending.answer_tokens,
        stopped=stopped,
        stopped_at=at if stopped else None,
        reason=ending.reason or "natural",
        stop_probability=ending.stop_probability,
        message=ending.message,
        resumed=decider.resumed,
        confidence=getattr(decider.policy, "confidence", None) if stopped else None,
        second=second,
        ratio=1.0 if core.plan.cascade is None else core.plan.cascade.ratio,
        second_ratio=decider.second_ratio,
        request_id=request_id,
        audited=decider.audited,
    )


def note(
    log: Log, decider: Decider, transcript: Transcript, decoded: Decoded, *,
    effort: str | None, natural: bool, max_tokens: int, settings: Mapping[str, Any],
) -> None:  # fmt: skip
    """Log a request, and record it where it was audited.

    ``effort`` is what its dial said, ``natural`` whether the model ended its thinking itself,
    ``max_tokens`` what the thinking was capped at.
    """
    log.decision(_line(decider, decoded, effort))
    if decider.audited and not decider.incomplete:
        log.audit(_trace(decider, transcript, decoded, natural, max_tokens, settings))


def _line(decider: Decider, decoded: Decoded, effort: str | None) -> LoggedRequest:
    plan = decider.core.plan
    versions = plan.versions
    # The exits that an audited request took back cost no answer, but they would have.
    unpaid = decider.paid if decoded.audited else 0
    return LoggedRequest(
        request_id=str(decoded.request_id),
        time=now(),
        policy=plan.fingerprint,
        registry_version=next(iter(versions.values())) if len(versions) == 1 else None,
        strategy=None if plan.plain else plan.digest,
        token_price=decider.token_price,
        audited=decoded.audited,
        stop=decider.would
        or Stop(
            decoded.reason, decoded.stopped_at, decoded.stop_probability,
            decoded.thinking_tokens, decider.probe_tokens, decoded.answer_tokens + unpaid,
        ),
        question=decider.facts.question,
        answer=decoded.answer,
        engine=decider.core.engine.name,
        effort=effort,
        correction=_correction(decider),
        answered_by=None if decoded.second is None else _second_name(decider),
        escalated=decoded.reason == "escalate",
        models=_models(decider, decoded),
    )  # fmt: skip


def _second_name(decider: Decider) -> str:
    plan = decider.core.plan
    return str(plan.second_model or plan.large_model)


def _correction(decider: Decider) -> CorrectionEntry | None:
    kept = decider.kept
    if kept is None and not decider.resumed:
        return None
    doubt = None if kept is None or math.isinf(kept.doubt) else kept.doubt
    return CorrectionEntry(
        decider.resumed, doubt, None if decider.second is None else _second_name(decider)
    )


def _models(decider: Decider, decoded: Decoded) -> tuple[ModelTokens, ...]:
    """What each model spent, where there were two."""
    second = decoded.second
    if second is None:
        return ()
    return (
        ModelTokens(decider.core.model, decoded.thinking_tokens, decoded.probe_tokens,
                    decoded.answer_tokens, decoded.ratio),
        ModelTokens(_second_name(decider), second.thinking_tokens, second.probe_tokens,
                    second.answer_tokens, decoded.second_ratio),
    )  # fmt: skip


def _trace(
    decider: Decider, transcript: Transcript, decoded: Decoded, natural: bool, max_tokens: int,
    settings: Mapping[str, Any],
) -> Trace:  # fmt: skip
    core, facts = decider.core, decider.facts
    thinking = decoded.thinking_tokens
    meta = {
        **facts.metadata,
        "stride": core.stride,
        "max_tokens": max_tokens,
        "probe_tokens": core.probe_tokens,
        "profile": core.profile.name,
        "exit_text": core.profile.exit_text,
        "scorer": core.scorer,
        "natural": natural,
        **settings,
    }
    if core.log is not None and core.log.store_text:
        meta["thinking"] = transcript.text(0, thinking)
        meta["cuts"] = [len(transcript.text(0, p.thinking_tokens)) for p in decider.points]
    return Trace(
        trace_id=str(decoded.request_id),
        question_id=question_id(facts.task, facts.question),
        task=facts.task,
        question=facts.question,
        target="",
        model=core.model,
        seed=int(settings.get("row_seed", 0)),
        final=Final(
            answer=read_answer(transcript.answer_ids, core.vocabulary, core.profile,
                               core.profile.answer_stop),
            exact_match=0,
            thinking_tokens=thinking,
            answer_tokens=decoded.answer_tokens,
        ),
        checkpoints=tuple(decider.points),
        meta=meta,
    )  # fmt: skip


def question_id(task: str, question: str) -> str:
    """The same for the same question, however often it is asked."""
    return f"{task or 'request'}-{sha256(question.encode()).hexdigest()[:16]}"
