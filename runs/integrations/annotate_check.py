"""Annotating the texts of recorded thoughts against the recording itself.

    python -m runs.integrations.annotate_check [--traces FOLDER] [--n N]

Records N questions of the embedded model (or takes a folder with their texts), writes their
questions, thoughts and answers to a log as a server would have, annotates it, and compares: the
places of the checkpoints, the exits' answers, the signals. Once with the thinking in a column of
its own and once as a completion with tags. Writes ``runs/results/annotate.json``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlbudget.decoding.annotate import annotate
from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_traces
from rlbudget.traces.trace import Trace
from runs.common import parser_of, row, write_result

CHECKPOINTS, EXITS = 0.99, 0.98


def main() -> None:
    """Record, annotate, compare, write."""
    args = parser_of(__doc__, 500).parse_args()
    torch.set_num_threads(1)
    model = load_model("embedded")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.traces
        if folder is None:
            folder = Path(scratch) / "recorded"
            record(model, load_task("embedded", n=args.n, seed=16), folder, store_text=True)
        recorded = [t for t in load_traces(folder) if t.meta["natural"]][: args.n]
        found: dict[str, dict[str, Any]] = {}
        for shape in ("columns", "completion"):
            log = Path(scratch) / f"{shape}.jsonl"
            log.write_text("".join(json.dumps(logged(t, shape)) + "\n" for t in recorded))
            stats = annotate(model, log, Path(scratch) / shape, batch_size=64)
            again = {trace.trace_id: trace for trace in load_traces(Path(scratch) / shape)}
            found[shape] = {**compared(recorded, again), "left_out": stats.left_out.kinds,
                            "seconds": stats.seconds}  # fmt: skip
    rows = []
    for shape, numbers in found.items():
        rows += [
            row(f"annotate ({shape}): same checkpoints as recorded, {len(recorded)} thoughts",
                f">= {CHECKPOINTS:.0%}", f"{numbers['checkpoints']:.2%}",
                numbers["checkpoints"] >= CHECKPOINTS),
            row(f"annotate ({shape}): same exit answers, {numbers['exits']} exits",
                f">= {EXITS:.0%}", f"{numbers['same_exits']:.2%}", numbers["same_exits"] >= EXITS),
        ]  # fmt: skip
    write_result("annotate", rows, questions=len(recorded), seed=16, shapes=found)


def logged(trace: Trace, shape: str) -> dict[str, Any]:
    """A decode as a line of a log."""
    thinking, answer = trace.meta["thinking"], trace.final.answer
    said = {"id": trace.trace_id, "question": trace.question, "target": trace.target}
    if shape == "columns":
        return said | {"thinking": thinking, "answer": answer}
    return said | {"completion": f"<think>{thinking}</think>{answer}"}


def compared(recorded: Sequence[Trace], again: dict[str, Trace]) -> dict[str, float]:
    """Shares of what is equal, of all that was recorded, and the largest difference of a signal."""
    checkpoints = finals = exits = same = probes = 0
    worst = 0.0
    for trace in recorded:
        exits += len(trace.checkpoints)
        other = again.get(trace.trace_id)
        if other is None:
            continue
        finals += (trace.final.answer, trace.final.thinking_tokens, trace.final.answer_tokens) == (
            other.final.answer, other.final.thinking_tokens, other.final.answer_tokens,
        )  # fmt: skip
        places = [c.thinking_tokens for c in trace.checkpoints]
        checkpoints += places == [c.thinking_tokens for c in other.checkpoints]
        at = {point.thinking_tokens: point for point in other.checkpoints}
        for point in trace.checkpoints:
            mine = at.get(point.thinking_tokens)
            if mine is None:
                continue
            same += mine.exit.answer == point.exit.answer
            probes += (
                mine.probe is not None
                and point.probe is not None
                and (mine.probe.answer == point.probe.answer)
            )
            worst = max(worst, *(abs(v - mine.signals[n]) for n, v in point.signals.items()))
    return {
        "checkpoints": checkpoints / len(recorded), "finals": finals / len(recorded),
        "exits": exits, "same_exits": same / exits, "same_trial_answers": probes / exits,
        "largest_difference_of_a_signal": worst,
    }  # fmt: skip


if __name__ == "__main__":
    main()
