"""The thoughts of kept traces, decoded again from their seeds: the traces hold no texts.

    python -m runs.quality.thoughts_again [--traces FOLDER] [--n N]   # to out/thoughts.jsonl

A decode depends on its own seed alone, so only the thinking is written again, without the exits.
One that comes out with another number of tokens than was recorded is counted and left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlbudget.models import load_model
from rlbudget.models.stream import stream
from rlbudget.traces.store import load_traces
from runs.common import KEPT_TRACES, OUT, parser_of

AT_ONCE = 64
FILE = OUT / "thoughts.jsonl"


def main() -> None:
    """Write a line a trace: its id, the token ids of its thinking, and whether it is the same."""
    args = parser_of(__doc__, 2600).parse_args()
    torch.set_num_threads(1)
    model = load_model("smollm2")
    OUT.mkdir(exist_ok=True)
    known = thoughts(FILE)
    traces = [
        t for t in load_traces(args.traces or KEPT_TRACES)[: args.n] if t.trace_id not in known
    ]
    traces.sort(key=lambda t: -len(model.prompt_ids(t.question)))
    written = 0
    with FILE.open("a") as out:
        for batch in stream(
            model, [t.question for t in traces], [t.meta["row_seed"] for t in traces],
            batch_size=AT_ONCE,
        ):  # fmt: skip
            for row in sorted(batch.final):
                end, trace = batch.final.pop(row), traces[row]
                same = end.thinking_tokens == trace.final.thinking_tokens
                line = {"id": trace.trace_id, "ids": list(end.ids), "same": same}
                out.write(json.dumps(line) + "\n")
                written += 1
            out.flush()
            print(f"{written} of {len(traces)}", file=sys.stderr, flush=True)


def thoughts(file: Path) -> dict[str, list[int]]:
    """Trace id -> token ids of the thinking, of the decodes that came out as recorded."""
    lines = file.read_text().splitlines() if file.is_file() else []
    found = map(json.loads, lines)
    return {line["id"]: line["ids"] for line in found if line["same"]}


if __name__ == "__main__":
    main()
