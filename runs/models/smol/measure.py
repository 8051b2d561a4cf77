"""Measure the SmolLM2 reasoner on fresh reserved questions, by its own samples.

    python -m runs.models.smol.measure [--n 500] [--seed 9002]

Decodes each question once to its natural end and writes ``runs/results/smol_reasoner.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import numpy as np

from rlbudget.decoding.record import row_seed
from rlbudget.models import load_model
from rlbudget.models.smollm2 import ADAPTER
from rlbudget.models.stream import stream
from rlbudget.tasks.load import load_task
from runs.common import write_result

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=500, help="questions")
    parser.add_argument("--seed", type=int, default=9002)
    args = parser.parse_args()
    model = load_model("smollm2")
    task = load_task("smollm2", n=args.n, seed=args.seed)
    questions = sorted(task.questions, key=lambda q: -len(q.question))
    right: dict[str, list[int]] = defaultdict(list)
    thinking: dict[str, list[int]] = defaultdict(list)
    capped = 0
    texts = [question.question for question in questions]
    seeds = [row_seed(args.seed, question.question_id) for question in questions]
    done = 0
    for batch in stream(model, texts, seeds, batch_size=BATCH):
        for row in list(batch.final):
            question, end = questions[row], batch.final.pop(row)
            right[question.meta["family"]].append(task.score(question, end.answer))
            thinking[question.meta["family"]].append(end.thinking_tokens)
            capped += not end.natural
            done += 1
        print(f"{done} of {len(questions)}", file=sys.stderr, flush=True)
    em = float(np.mean([value for values in right.values() for value in values]))
    tokens = float(np.mean([value for values in thinking.values() for value in values]))
    shipped = ADAPTER / "adapter_model.safetensors"
    size = shipped.stat().st_size / 1e6
    rows = [
        _row(f"SmolLM2 reasoner: natural exact match, {len(right)} families, {args.n} fresh"
             " questions", ">= 0.60 over >= 5 families", f"{em:.3f}",
             em >= 0.6 and len(right) >= 5),
        _row("its mean thinking tokens", ">= 80", f"{tokens:.1f}", tokens >= 80),
        _row("its adapter, rank 16, bf16", "<= 12 MB", f"{size:.1f} MB", size <= 12),
    ]  # fmt: skip
    write_result(
        "smol_reasoner", rows,
        reproduce="bash runs/models/smol_reasoner.sh", seed=args.seed,
        temperature=model.profile.temperature, max_tokens=model.profile.max_tokens,
        unfinished=capped / args.n,
        families={
            family: {"exact_match": float(np.mean(values)),
                     "thinking_tokens": float(np.mean(thinking[family])),
                     "questions": len(values)}
            for family, values in sorted(right.items())
        },
    )  # fmt: skip


def _row(name: str, wanted: str, reached: str, met: bool) -> dict[str, object]:
    return {"row": name, "wanted": wanted, "reached": reached, "met": bool(met)}


if __name__ == "__main__":
    main()
