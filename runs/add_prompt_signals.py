"""Adds what the model makes of the prompts to traces that were recorded without it.

    python runs/add_prompt_signals.py runs/smollm2/traces --out FOLDER [--model smollm2]

The questions are read once more, nothing is decoded: the new folder holds the same traces, with
the signals of ``rlbudget.context.PROMPT_SIGNALS`` at every checkpoint. It appears when it is whole.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlbudget.context import PROMPT_SIGNALS
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.store import TraceWriter, iter_traces
from rlbudget.traces import Trace

BATCH = 64
PART = 128


def main() -> None:
    """Read the prompts, write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", type=Path, help="a recorded folder; it stays as it is")
    parser.add_argument("--out", type=Path, required=True, help="the new folder")
    parser.add_argument("--model", help="by default the model that the traces name")
    args = parser.parse_args()
    first = next(iter_traces(args.traces))
    try:
        model = load_model(args.model or first.model, profile=first.meta.get("profile"))
        n = add_prompt_signals(model, args.traces, args.out)
    except UserError as error:
        sys.exit(str(error))
    print(f"{n} traces written to {args.out}", file=sys.stderr)


def add_prompt_signals(model: TransformersModel, traces: Path, out: Path) -> int:
    """Write the traces of ``traces`` with their prompt signals to the new folder ``out``.

    Returns how many there are. Raises ``UserError`` for a folder that is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already: choose another folder")
    known = read(model, sorted({trace.question for trace in iter_traces(traces)}, key=len))
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    n = 0
    with TraceWriter(unfinished, part_size=PART) as writer:
        for trace in iter_traces(traces):
            writer.add(with_signals(trace, known[trace.question]))
            n += 1
    unfinished.rename(out)
    return n


def read(model: TransformersModel, questions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each question's ``PROMPT_SIGNALS``; neighbours should be of like length."""
    known: dict[str, dict[str, float]] = {}
    for begin in range(0, len(questions), BATCH):
        some = questions[begin : begin + BATCH]
        for question, values in zip(some, model.prompt_signals(some).tolist(), strict=True):
            known[question] = dict(zip(PROMPT_SIGNALS, values, strict=True))
        print(f"{len(known)}/{len(questions)} questions read", file=sys.stderr, flush=True)
    return known


def with_signals(trace: Trace, signals: Mapping[str, float]) -> Trace:
    """The trace with these signals at every checkpoint."""
    points = [replace(point, signals={**point.signals, **signals}) for point in trace.checkpoints]
    return replace(trace, checkpoints=tuple(points))


if __name__ == "__main__":
    main()
