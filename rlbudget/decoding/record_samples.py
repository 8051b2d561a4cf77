"""Recording samples: many decodes of each question, as traces of when to stop drawing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlbudget.decoding.fitting import fitting
from rlbudget.decoding.known import check_ids, recording_settings, there_of
from rlbudget.decoding.record import BATCH_SIZE, RecordStats, remembering, row_seed
from rlbudget.errors import UserError
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.samples import MOST_SAMPLES, Sample, Sampled, traces_of_samples
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.trace import Trace

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


def record_samples(
    model: TransformersModel,
    task: Task,
    folder: Path | str,
    *,
    samples: int,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_left_out: Callable[[str], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_halved: Callable[[str], None] | None = None,
) -> RecordStats:
    """Decode every question ``samples`` times and write its traces of samples to ``folder``.

    Like ``record``, but without exits: a question's samples become the traces of
    ``rlbudget.traces.samples``, written together. ``progress(done, total)`` counts questions;
    ``on_trace`` gets a trace of each question, whose answer is the majority of all its samples.
    Raises ``UserError`` as ``record`` does, and for fewer than two samples.
    """
    begun = time.monotonic()
    if samples < 2:
        raise UserError(f"--samples {samples}: a majority needs at least 2")
    if samples > MOST_SAMPLES:
        raise UserError(f"--samples {samples}: {MOST_SAMPLES} are the most")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    fits = fitting(model, task, max_tokens, on_left_out)
    task = fits.task
    n = tokens = 0
    profile = model.profile
    known = recording_settings(
        "samples",
        model,
        task.name,
        {"profile": profile.name, "exit_text": profile.exit_text},
        scorer=task.scorer,
        samples=samples,
        max_tokens=profile.max_tokens if max_tokens is None else max_tokens,
        temperature=float(profile.temperature if temperature is None else temperature),
        seed=seed,
    )
    check_ids(task)
    firsts = {f"{question.question_id}-o0": question for question in task.questions}
    with TraceWriter(folder, append=resume, settings=known) as writer:
        there = there_of(folder, firsts)
        missing = [question for name, question in firsts.items() if name not in there]
        skipped = len(task.questions) - len(missing)
        if progress is not None:
            progress(skipped, len(task.questions))
        written = 0
        for sampled in _sample(model, task, missing, samples, seed, temperature, max_tokens,
                               batch_size, on_halved):  # fmt: skip
            tokens += sum(sample.tokens for sample in sampled.samples)
            n += 1
            traces = traces_of_samples(sampled, seed=seed)
            for trace in traces:
                writer.add(trace)
            if on_trace is not None:
                on_trace(traces[0])
            if (n - written) * samples >= batch_size:
                writer.flush()
                written = n
            if progress is not None:
                progress(skipped + n, len(task.questions))
    seconds = time.monotonic() - begun
    return RecordStats(
        n=n, skipped=skipped, tokens=tokens, exit_tokens=0, seconds=seconds, left_out=fits.left_out
    )


def _sample(
    model: TransformersModel,
    task: Task,
    questions: Sequence[Question],
    samples: int,
    seed: int,
    temperature: float | None,
    max_tokens: int | None,
    batch_size: int,
    on_halved: Callable[[str], None] | None,
) -> Iterator[Sampled]:
    """The questions whose samples are all drawn, as they are."""
    from rlbudget.models.stream import Attempts, stream  # needs torch

    rows = [(question, number) for question in questions for number in range(samples)]
    score = remembering(task, [question for question, _ in rows])
    drawn: dict[str, dict[int, Sample]] = {}
    for attempt in Attempts(len(rows), batch_size, on_halved=on_halved):
        with attempt:
            left, width = attempt.rows, attempt.width
            for batch in stream(
                model,
                [rows[row][0].question for row in left],
                [row_seed(seed, f"{rows[row][0].question_id}#{rows[row][1]}") for row in left],
                batch_size=width,
                temperature=temperature,
                max_tokens=max_tokens,
            ):
                for place in sorted(batch.final):
                    row, end = left[place], batch.final.pop(place)
                    question, number = rows[row]
                    attempt.ended(row)
                    own = drawn.setdefault(question.question_id, {})
                    own[number] = Sample(
                        end.answer, score(row, end.answer), end.thinking_tokens + end.answer_tokens
                    )
                    if len(own) == samples:
                        del drawn[question.question_id]
                        yield Sampled(
                            question.question_id, task.name, question.question, question.target,
                            model.name, tuple(own[number] for number in range(samples)),
                            task.scorer,
                        )  # fmt: skip
