"""How fast the recorder is, and what an exit answer at every checkpoint costs.

    python -m runs.speed.recorder_speed --name recorder_speed_embedded
    python -m runs.speed.recorder_speed --model FOLDER --model-profile smollm2 --task smollm2 \
        --no-reprefill --n 48 --batch-size 48

The same questions, in alternating runs of one process:

* ``plain``: the recorder's decoding without exits, the same tokens as the recording;
* ``record``: ``rlbudget.decoding.record.record``, with exits, trial answers, scoring and writing;
* ``reprefill``: the same decodes, but each checkpoint's exit reads prompt and thinking again;
* ``generate``: transformers' own ``generate`` at its best batch size, its time scaled to the
  tokens of ``plain``.

``--profile`` records once and says where the time went. It needs nothing but ``record``, so it
also runs on older checkouts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbudget.decoding.record import RecordStats, record, row_seed
from rlbudget.models import decode_batch, load_model
from rlbudget.models.answers import continue_greedily
from rlbudget.models.sequences import Sequences
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.tasks import Task, load_task
from runs.common import write_result

GENERATE_BATCHES = (32, 64, 128, 256)
WAYS = ("plain", "record", "reprefill", "generate")


def plain(model: TransformersModel, task: Task, batch_size: int, *, again: bool = False) -> int:
    """Decode everything; with ``again`` answer each checkpoint by reading it all again.

    Returns the tokens of the full decodes.
    """
    from rlbudget.models.stream import stream

    questions = sorted(task.questions, key=lambda q: -len(model.prompt_ids(q.question)))
    tokens = 0
    for batch in stream(
        model,
        [q.question for q in questions],
        [row_seed(0, q.question_id) for q in questions],
        batch_size=batch_size,
    ):
        rows = batch.at_checkpoint.tolist()
        if again and rows:
            read = [
                [*model.prompt_ids(questions[row].question), *batch.thinking_ids(row).tolist()]
                for row in rows
            ]
            _exits_by_reading_again(model, read)
        for row in list(batch.final):
            end = batch.final.pop(row)
            tokens += end.thinking_tokens + end.answer_tokens
    return tokens


@torch.inference_mode()
def _exits_by_reading_again(model: TransformersModel, read: list[list[int]]) -> None:
    continue_greedily(
        Sequences.begin(model.network, read),
        model.vocabulary.exit_ids,
        np.ones(len(read), dtype=bool),
        cap=model.profile.max_answer_tokens,
        vocabulary=model.vocabulary,
        stops=model.profile.answer_stop,
    )


@torch.inference_mode()
def generate(model: TransformersModel, task: Task, batch_size: int) -> int:
    """Transformers' own sampling; returns the tokens up to each row's end."""
    prompts = sorted((model.prompt_ids(q.question) for q in task.questions), key=len)
    eos = set(model.vocabulary.eos_ids.tolist())
    attention = model.network.config._attn_implementation
    model.network.set_attn_implementation("sdpa")
    tokens = 0
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        out = model.network.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=model.profile.temperature,
            top_k=0,
            max_new_tokens=model.profile.max_tokens + model.profile.max_answer_tokens,
            pad_token_id=0,
        )[:, width:].tolist()
        for row in out:
            tokens += next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
    model.network.set_attn_implementation(attention)
    return tokens


def recording(model: TransformersModel, task: Task, batch_size: int) -> RecordStats:
    """Record into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return record(model, task, Path(folder) / "traces", batch_size=batch_size)


def where_time_goes(
    model: TransformersModel, task: Task, batch_size: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Record once: the seconds of each part of the work, and their sum."""
    spent = dict.fromkeys(("prompts", "thinking", "forks", "sampling and signals"), 0.0)
    inside: list[str] = []

    def measured(function: Callable[..., Any], name: Callable[[Any], str]) -> Callable[..., Any]:
        def run(*args: Any, **rest: Any) -> Any:
            if inside:  # an outer part counts all that is in it
                return function(*args, **rest)
            inside.append(name(rest))
            begun = clock()
            try:
                return function(*args, **rest)
            finally:
                spent[inside.pop()] += clock() - begun

        return run

    def reads(call: dict[str, Any]) -> str:
        return "prompts" if call["input_ids"].shape[1] > 8 else "thinking"

    batch: Any = decode_batch.DecodeBatch
    places: Sequence[tuple[Any, str, Callable[[Any], str]]] = (
        (model.network, "forward", reads),
        *((batch, f"fork_{what}", lambda _: "forks") for what in ("exits", "probes", "options")),
        *((decode_batch, what, lambda _: "sampling and signals")
          for what in ("sample", "token_signals")),
    )  # fmt: skip
    with _replaced([(o, name, measured(getattr(o, name), kind)) for o, name, kind in places]):
        begun = clock()
        stats = recording(model, task, batch_size)
        total = clock() - begun
    spent["python and writing"] = total - sum(spent.values())
    return {
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "total_seconds": round(total, 3),
        "tokens_per_second": round(stats.tokens / total, 1),
        "tokens": stats.tokens,
        "exit_tokens": stats.exit_tokens,
    }


@contextmanager
def _replaced(new: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    old = [(owner, name, getattr(owner, name)) for owner, name, _ in new]
    for owner, name, value in new:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in old:
            setattr(owner, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="embedded, or a FOLDER")
    parser.add_argument("--model-profile", default="embedded")
    parser.add_argument("--task", default="embedded")
    parser.add_argument("--n", type=int, default=256, help="questions")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="recorder_speed", help="of the result")
    parser.add_argument("--no-reprefill", action="store_true", help="leave this slow way out")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine with other work")
    parser.add_argument("--profile", action="store_true", help="only say where the time goes")
    parser.add_argument("--before", type=Path, help="output of --profile to keep in the result")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, profile=arguments.model_profile)
    task = load_task(arguments.task, n=arguments.n, seed=1)
    size = arguments.batch_size
    recording(model, Task(task.name, task.questions[:8], task.score), size)
    profile = where_time_goes(model, task, size, clock)
    if arguments.profile:
        print(json.dumps(profile, indent=1))
        return

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        begun = clock()
        result = run()
        return clock() - begun, result

    rates = {}
    for candidate in [c for c in GENERATE_BATCHES if c < 2 * arguments.n]:
        torch.manual_seed(0)
        seconds, own = timed(lambda c=candidate: generate(model, task, c))  # type: ignore[misc]
        rates[candidate] = own / seconds
    best = max(rates, key=lambda candidate: rates[candidate])
    ways = [way for way in WAYS if way != "reprefill" or not arguments.no_reprefill]
    found: dict[str, list[float]] = {way: [] for way in ways}
    tokens, stats = 0, None
    for run in range(arguments.runs):
        for way in ways:
            torch.manual_seed(run)
            if way == "record":
                seconds, stats = timed(lambda: recording(model, task, size))
            elif way == "generate":
                seconds, own = timed(lambda: generate(model, task, best))
                seconds *= tokens / own
            else:
                again = way == "reprefill"
                seconds, tokens = timed(lambda a=again: plain(model, task, size, again=a))  # type: ignore[misc]
            found[way].append(seconds)
    assert stats is not None
    assert abs(stats.tokens - tokens) < 0.01 * tokens
    median = {name: statistics.median(values) for name, values in found.items()}
    write_result(
        arguments.name,
        rows_of(median),
        profile=profile,
        **(
            {"profile_before": json.loads(arguments.before.read_text())} if arguments.before else {}
        ),
        seconds={name: [round(value, 3) for value in values] for name, values in found.items()},
        median_seconds={name: round(value, 3) for name, value in median.items()},
        tokens_per_second={name: round(tokens / value, 1) for name, value in median.items()},
        generate_tokens_per_second={str(k): round(v, 1) for k, v in rates.items()},
        generate_batch_size=best,
        tokens=tokens,
        exit_tokens=stats.exit_tokens,
        questions=arguments.n,
        batch_size=size,
        stride=model.profile.stride,
        max_tokens=model.profile.max_tokens,
        temperature=model.profile.temperature,
        parameters=sum(p.numel() for p in model.network.parameters()),
        seeds={"questions": 1, "decodes": 0},
        threads=arguments.threads,
        clock="processor" if arguments.cpu_time else "wall",
    )


def rows_of(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of the result; ``seconds`` for the same tokens, by way."""
    least = [
        (
            "recording with an exit answer at every checkpoint, tokens a second of its full"
            " decodes over those of transformers' generate at its best batch size",
            0.8,
            seconds["generate"] / seconds["record"],
        ),
        (
            "the recorder's decoding without exits, tokens a second over those of transformers'"
            " generate at its best batch size",
            0.8,
            seconds["generate"] / seconds["plain"],
        ),
    ]
    if "reprefill" in seconds:
        exits = (seconds["reprefill"] - seconds["plain"]) / (seconds["record"] - seconds["plain"])
        least += [
            (
                "exit answers at every checkpoint, times faster than by re-prefilling: the time"
                " beyond plain decoding (for us with trial answers, scoring and writing)",
                5,
                exits,
            ),
            (
                "the whole recording, its decoding included, times faster than with re-prefilling",
                5,
                seconds["reprefill"] / seconds["record"],
            ),
        ]
    slowdown = seconds["record"] / seconds["plain"]
    first = {
        "row": "recording with an exit answer at every checkpoint, time over plain batched"
        " generation of the same tokens",
        "wanted": "<= 2.5",
        "reached": round(slowdown, 2),
        "met": slowdown <= 2.5,
    }
    return [
        first,
        *(
            {"row": row, "wanted": f">= {wanted:g}", "reached": round(reached, 2),
             "met": reached >= wanted}
            for row, wanted, reached in least
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
