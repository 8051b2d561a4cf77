"""Which way of driving a network decodes as transformers' own ``generate`` does.

Families differ in what they remember, in what padding does to it and in how it is asked for, and
a wrong guess decodes fluent nonsense. So two short prompts are decoded by ``generate``, each alone,
and read again the way decodes and their forks are: padded into one batch first, then
with one new token a pass, then row by row, until the numbers are the same.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging as _logging

from rlbudget.errors import UserError
from rlbudget.models.attention import install, uninstall
from rlbudget.models.row_by_row import RowByRow
from rlbudget.models.sequences import Sequences, Unfinished

Driving = Literal["batch", "steps", "rows"]
"""``Sequences``, the same with one new token a pass, or ``RowByRow``."""

_LENGTHS = (3, 13)
_STEPS = 5
_CLOSE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""dtype -> relative error of a row's logits that the order of additions explains"""
_HALF, _TF32 = 0.1, 1e-2
_known: dict[str, Driving | str] = {}


def driving_of(network: Any, name: str, *, ours: bool = True) -> Driving:
    """How ``network`` can be driven; if it is ``ours``, its attention is set to suit.

    Found out once for each architecture, dtype and device. Raises ``UserError`` where no way
    gives the logits of ``generate``.
    """
    if ours:
        uninstall(network)
    key = _key(network, ours)
    if key not in _known:
        with torch.inference_mode(), _silence():
            _known[key] = _find(network, ours)
    found = _known[key]
    if found not in ("batch", "steps", "rows"):
        kind = type(network).__name__
        raise UserError(
            f"the model {name!r} ({kind}) cannot be decoded here as transformers' generate"
            f" decodes it: {found}; serve it with an engine of its own and name that by its URL"
        )
    if ours and found != "rows":
        install(network)
    return found


def start(driving: Driving, network: Any, prompts: Sequence[Sequence[int]]) -> Unfinished:
    """Read the prompts (token ids, none empty)."""
    if driving == "rows":
        return RowByRow.begin(network, prompts)
    return Sequences.begin(network, prompts, single=driving == "steps")


def _find(network: Any, ours: bool) -> Driving | str:
    prompts = _prompts(network)
    try:
        wanted = [_generated(network, prompt) for prompt in prompts]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # networks fail in their own ways: any of them is a refusal
        return f"generate itself fails ({_line(error)})"
    if not all(logits.isfinite().all() for _, logits in wanted):
        return "batch"  # nothing can be compared; decodes say that these are no numbers
    why = ""
    ways: tuple[Driving, ...] = ("batch", "steps", "rows")
    for way in ways:
        if ours and way != "rows":
            install(network)
        elif ours:
            uninstall(network)
        try:
            off = _worst(partial(start, way, network), prompts, wanted)
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # as above
            why = _line(failure)
            continue
        if off <= _tolerance(network):
            return way
        why = f"logits differ by {off:.1%}"
    return why


def _prompts(network: Any) -> list[list[int]]:
    size = int(network.get_input_embeddings().weight.shape[0])
    rng = np.random.default_rng(0)
    return [rng.integers(size // 8, size, length).tolist() for length in _LENGTHS]


def _generated(network: Any, prompt: Sequence[int]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens after a prompt, and the logits they were chosen from, (steps, vocabulary)."""
    ids = torch.tensor([list(prompt)], device=network.device)
    out = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_STEPS,
        min_new_tokens=_STEPS,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    logits = torch.cat([step.float().cpu() for step in out.logits])
    return out.sequences[0, len(prompt) :].tolist(), logits


def _worst(
    begin: Callable[[Sequence[Sequence[int]]], Unfinished],
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[tuple[list[int], torch.Tensor]],
) -> float:
    """The largest relative error over everything that a decode does with its sequences."""
    tokens = torch.tensor([ids[:_STEPS] for ids, _ in wanted])
    steps = len(tokens[0])
    errors: list[float] = []

    def compare(rows: Unfinished, which: Sequence[int], step: int) -> None:
        for row, prompt in enumerate(which):
            errors.append(_error(rows.logits[row], wanted[prompt][1][step]))

    def feed(rows: Unfinished, which: Sequence[int], step: int, n: int = 1) -> None:
        rows.feed(tokens[list(which), step : step + n].to(rows.logits.device))

    rows = begin(prompts)
    compare(rows, (0, 1), 0)
    with rows.fork() as ahead:  # an exit text, then an answer
        feed(ahead, (0, 1), 0, 2)
        compare(ahead, (0, 1), 2)
        feed(ahead, (0, 1), 2)
        compare(ahead, (0, 1), 3)
    feed(rows, (0, 1), 0)
    compare(rows, (0, 1), 1)
    for row in (0, 1):
        one = rows.selected(torch.tensor([row], device=rows.logits.device))
        feed(one, (row,), 1)
        compare(one, (row,), 2)
    if rows.takes_more:
        rows.join(begin([[*prompts[0], *tokens[0, :1].tolist()]]))
        rows.keep(np.array([2, 1]))
    for step in range(1, steps - 1):
        feed(rows, (0, 1), step)
        compare(rows, (0, 1), step + 1)
    rows.keep(np.array([0]))
    compare(rows, (0,), steps - 1)
    return max(errors)


def _error(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    mine, theirs = mine.cpu().double(), theirs.double()
    centred = theirs - theirs.mean()
    shift = mine - mine.mean() - centred
    error = float(shift.norm() / centred.norm().clamp(min=1e-9))
    return error if np.isfinite(error) else float("inf")


def _tolerance(network: Any) -> float:
    close = _CLOSE.get(network.dtype, _HALF)
    return max(close, _TF32) if network.device.type == "cuda" else close


def _key(network: Any, ours: bool) -> str:
    config = json.dumps(network.config.to_dict(), sort_keys=True, default=str)
    attention = "" if ours else str(network.config._attn_implementation)
    kind = type(network).__qualname__
    parts = (kind, str(network.dtype), network.device.type, attention, config)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:199] + "…"


@contextmanager
def _silence() -> Iterator[None]:
    """Neither warnings nor the log of transformers: what is odd is said by us, in one line."""
    logging: Any = _logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
