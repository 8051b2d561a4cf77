"""Kinds of models: does a greedy decode equal transformers' ``generate``, or is it refused?

::

    python -m runs.integrations.architectures

For each kind a tiny random network is made and saved, and ``load_model`` reads it. Questions of
different lengths are decoded greedily in one batch with an exit at every checkpoint, then each
alone; thinking and exits are compared with ``generate`` of a network that rlbudget has not
touched. *Equal*: all tokens are the same. *Refused*: ``load_model`` says so in one line. Anything
else is a fault. Prints one JSON object as its last line and keeps it as
``runs/results/architectures.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import EMBEDDED, TransformersModel, class_of
from runs.common import row, write_result
from runs.integrations.architecture_kinds import KINDS, settings_of

WANTED = 60
SEED = 0
QUESTIONS = tuple(f"What is {i} + {7 * i % 13}?" * (1 + 2 * (i % 3)) for i in range(4))
CAP, STRIDE = 24, 8
EXITS = 1
"""of each question that are compared with ``generate``"""

Outcome = Literal["equal", "refused", "different", "fault", "not made"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one kind."""

    kind: str
    outcome: Outcome
    driving: str = ""
    note: str = ""
    seconds: float = 0.0


def make(kind: str, settings: dict[str, Any], folder: Path) -> None:
    """Save a tiny random model of this kind with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, trust_remote_code=False)
    config = AutoConfig.for_model(kind, **settings_of(settings, tokenizer))
    torch.manual_seed(SEED)
    network = class_of(config).from_config(config)
    head = network.get_output_embeddings()
    if head is not None:
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</think>")]
        with torch.no_grad():
            head.weight[ends] *= 1.5  # now and then the thinking ends
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def examine(kind: str, settings: dict[str, Any], folder: Path) -> Verdict:
    """Make one kind, load it, decode and compare."""
    begun = time.monotonic()

    def verdict(outcome: Outcome, note: str = "", driving: str = "") -> Verdict:
        return Verdict(kind, outcome, driving, note, round(time.monotonic() - begun, 2))

    try:
        make(kind, settings, folder)
    except Exception as error:
        return verdict("not made", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    try:
        model = load_model(str(folder), profile="embedded", device="cpu")
    except UserError as error:
        line = str(error).replace(str(folder), "FOLDER")
        return verdict("refused" if "\n" not in line else "fault", line)
    except Exception as error:
        return verdict("fault", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    try:
        differ = compare(model, folder)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return verdict("fault", why, model.driving)
    return verdict("different" if differ else "equal", "; ".join(differ), model.driving)


def compare(model: TransformersModel, folder: Path) -> list[str]:
    """What differs between decodes in a batch, decodes alone and ``generate``."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    plain = class_of(config).from_pretrained(folder, trust_remote_code=False).eval()
    plain.generation_config.forced_eos_token_id = None  # bart would force the last token
    together = _run(model, QUESTIONS)
    found = []
    for number, question in enumerate(QUESTIONS):
        (alone,) = _run(model, [question])
        if alone != together[number]:
            found.append(f"question {number} in a batch")
        prompt = model.prompt_ids(question)
        thought = list(alone.thinking)
        if _generated(plain, prompt, len(thought)) != thought:
            found.append(f"question {number} and generate")
        for at, ids in alone.exits[:EXITS]:
            read = [*prompt, *thought[:at], *model.vocabulary.exit_ids]
            if _generated(plain, read, len(ids)) != list(ids):
                found.append(f"question {number}'s exit at {at} and generate")
    return found


@dataclass(frozen=True, slots=True)
class _Decode:
    thinking: tuple[int, ...]
    rest: str
    exits: tuple[tuple[int, tuple[int, ...]], ...]
    """(thinking tokens, the answer's tokens)"""


def _run(model: TransformersModel, questions: Sequence[str]) -> list[_Decode]:
    batch = model.begin(
        questions, range(len(questions)), temperature=0.0, max_tokens=CAP, stride=STRIDE
    )
    exits: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    while not batch.done:
        batch.advance()
        rows = batch.at_checkpoint
        counts = batch.thinking_tokens(rows).tolist()
        for row_, at, exit_ in zip(rows.tolist(), counts, batch.fork_exits(rows), strict=True):
            exits.setdefault(row_, []).append((at, exit_.ids))
    return [
        _Decode(batch.final[i].ids, batch.final[i].rest, tuple(exits.get(i, ())))
        for i in range(len(questions))
    ]


@torch.inference_mode()
def _generated(network: Any, prompt: Sequence[int], n: int) -> list[int]:
    if not n:
        return []
    ids = torch.tensor([list(prompt)])
    out = network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, num_beams=1
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="some kinds only; nothing is kept then")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    chosen = arguments.kinds or sorted(KINDS)
    verdicts = []
    for kind in chosen:
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(examine(kind, KINDS.get(kind, {}), Path(folder)))
        one = verdicts[-1]
        print(f"{kind}: {one.outcome} {one.driving} {one.note} ({one.seconds} s)", flush=True)
    counts = Counter(one.outcome for one in verdicts)
    tried = len(verdicts) - counts["not made"]
    good = counts["equal"] + counts["refused"]
    rows = [
        row(
            "kinds of models made on the spot whose greedy decode equals generate, in a batch and"
            " alone, forks and exits included, or that are refused in one line",
            f"all, of {WANTED} or more that are accepted",
            f"{good} of {tried}: {counts['equal']} equal, {counts['refused']} refused",
            good == tried and counts["equal"] >= WANTED,
        )
    ]
    write_result(
        "architectures",
        rows,
        keep=not arguments.kinds,
        seeds=[SEED],
        counts=dict(counts),
        kinds=[asdict(one) for one in verdicts],
    )


if __name__ == "__main__":
    main()
