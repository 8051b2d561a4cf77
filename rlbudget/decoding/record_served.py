"""Recording through servers: many questions at once, whatever happens on the way.

A trace is added when its question has come to its end, whole or not at all, and what has ended is
written every so often: a recording that is interrupted keeps what it has and goes on with
``resume``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rlbudget.decoding.known import check_ids, there_of
from rlbudget.decoding.record import (
    Recorded,
    RecordStats,
    Settings,
    remembering,
    row_seed,
    settings_of,
    trace_id,
)
from rlbudget.decoding.served_decode import Job, record_question
from rlbudget.decoding.sharing import Crew, Given, shared
from rlbudget.errors import UserError
from rlbudget.models.served import Asked, ServedModel, Server, alive, open_model
from rlbudget.models.served_write import Spent
from rlbudget.models.site import ServerError
from rlbudget.tasks.task import Task
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.trace import PROBE_TOKENS, Trace

_REFUSED = 8
"""First questions that are all refused: then the rest would be too."""
_FLUSH_TRACES, _FLUSH_SECONDS, _FLUSH_SHARE = 256, 1.0, 0.02
"""What has ended is written when there is so much, or after so long: seconds, and a share of all
that went by, so that the parts stay few."""
_TEXTS = 10
"""Questions whose tokens are compared with the server's."""


@dataclass(frozen=True, slots=True)
class Served:
    """Where a model is served, and how it is asked."""

    urls: Sequence[str]
    """up to ``/v1``, each"""
    model: str | None = None
    """as the server calls it; by default the first that it lists"""
    tokenizer: Any = None
    """that of the served model, or the name that loads it; by default what the server says"""
    profile: str | None = None
    key: str | None = field(default=None, repr=False)
    asked: Asked = field(default_factory=Asked)
    patience: float = 600.0
    """seconds without a server that answers before a recording ends"""


def opened(
    served: Served, texts: Sequence[str] = ()
) -> AbstractAsyncContextManager[ServedModel, bool | None]:
    """``open_model`` of these servers, ``texts`` some of the questions."""
    return open_model(
        served.urls, model=served.model, tokenizer=served.tokenizer, profile=served.profile,
        key=served.key, asked=served.asked, texts=texts,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listening:
    """Who is told what while a recording runs."""

    progress: Callable[[int, int], None] = lambda done, total: None
    """counts of questions: done, all"""
    on_model: Callable[[ServedModel], None] = lambda model: None
    """once, before the first question"""
    on_left_out: Callable[[str], None] = lambda why: None
    on_trace: Callable[[Trace], None] = lambda trace: None


@dataclass(frozen=True, slots=True)
class ServedStats:
    """What a recording through servers did."""

    stats: RecordStats
    spent: Spent
    """by its requests"""


def record_served(
    served: Served,
    task: Task,
    folder: Path | str,
    *,
    stride: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    probe_tokens: int = PROBE_TOKENS,
    seed: int = 0,
    store_text: bool = False,
    text_signals: bool = False,
    resume: bool = False,
    listening: Listening | None = None,
) -> ServedStats:
    """Decode every question of ``task`` once through servers; its trace goes to ``folder``.

    The settings are those of ``rlbudget.decoding.record.record``; where the servers list no
    log-probabilities the signals of the text are recorded in any case. Questions are shared among
    the servers by free capacity; each request is asked again on faults that pass, and a question
    whose server dies is given to another, or to the same one when it is back. Raises ``UserError``
    for what ``open_model`` refuses, a folder that holds other traces, questions that are all
    refused, and servers that no longer answer: what was recorded is kept.
    """

    async def run() -> ServedStats:
        texts = [question.question for question in task.questions[:_TEXTS]]
        async with opened(served, texts) as model:
            settings = settings_of(
                model.profile, stride=stride, max_tokens=max_tokens, temperature=temperature,
                probe_tokens=probe_tokens, seed=seed, store_text=store_text,
                text_signals=text_signals or not model.top, more=meta_of(model),
            )  # fmt: skip
            heard = listening or Listening()
            heard.on_model(model)
            return await _record(model, task, folder, settings, served.patience, resume, heard)

    try:
        return asyncio.run(run())
    except ServerError as error:
        raise UserError(
            f"{error}; what was recorded is kept: run the same command with --resume"
        ) from None


def meta_of(model: ServedModel) -> dict[str, Any]:
    """What every trace says of the way its model was asked, beside the settings."""
    return {"top_logprobs": model.top, **model.asked.meta}


async def _record(
    model: ServedModel,
    task: Task,
    folder: Path | str,
    settings: Settings,
    patience: float,
    resume: bool,
    heard: Listening,
) -> ServedStats:
    begun, spent = time.monotonic(), Spent()
    check_ids(task)
    ids = [trace_id(settings.seed, question.question_id) for question in task.questions]
    width = model.asked.questions or model.asked.concurrency
    crew = Crew(model.servers, width, alive, patience)
    left_out: list[str] = []
    n = tokens = exit_tokens = 0
    known = settings.known(model, task)
    with TraceWriter(folder, append=resume, settings=known) as writer:
        there = there_of(folder, dict(zip(ids, task.questions, strict=True)))
        missing = [q for q, name in zip(task.questions, ids, strict=True) if name not in there]
        jobs = [Job(n, q, row_seed(settings.seed, q.question_id)) for n, q in enumerate(missing)]
        heard.progress(len(there), len(ids))

        async def one(server: Server, job: Job) -> Recorded:
            score = partial(remembering(task, [job.question]), 0)
            return await record_question(model, server, task, job, settings, score, spent)

        held, flushed = 0, time.monotonic()
        async with aclosing(shared(crew, jobs, one)) as ended:
            async for given in ended:
                if isinstance(given.result, UserError):
                    left_out.append(_why(given))
                    heard.on_left_out(left_out[-1])
                    if not n and len(left_out) >= min(_REFUSED, len(jobs)):
                        raise UserError(f"no question can be recorded; the first: {left_out[0]}")
                    continue
                trace = given.result.trace
                writer.add(trace)
                heard.on_trace(trace)
                n, held = n + 1, held + 1
                tokens += trace.final.thinking_tokens + trace.final.answer_tokens
                exit_tokens += sum(c.exit.answer_tokens for c in trace.checkpoints)
                now = time.monotonic()
                due = max(_FLUSH_SECONDS, _FLUSH_SHARE * (now - begun))
                if held >= _FLUSH_TRACES or now - flushed > due:
                    writer.flush()
                    held, flushed = 0, now
                heard.progress(len(there) + n, len(ids))
    stats = RecordStats(
        n=n, skipped=len(there), tokens=tokens, exit_tokens=exit_tokens,
        seconds=time.monotonic() - begun, left_out=tuple(left_out),
    )  # fmt: skip
    return ServedStats(stats, spent)


def _why(given: Given[Job, Recorded]) -> str:
    return f"question {given.job.question.question_id!r} is left out: {given.result}"
