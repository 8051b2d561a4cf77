"""What a folder of traces holds, in counts: read a part at a time, so memory stays flat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlbudget.arrays import Floats, Ints
from rlbudget.traces.columns import meta_of
from rlbudget.traces.store import iter_parts

SETTINGS = ("profile", "stride", "max_tokens", "temperature", "probe_tokens", "scorer",
            "compared_with")  # fmt: skip
"""What ``meta`` says of how a trace was made."""

_SIGNAL = "signal."


@dataclass(slots=True)
class Survey:
    """Counts and sums over ``traces`` decodes."""

    traces: int = 0
    questions: int = 0
    right: int = 0
    """full decodes whose answer is the target"""
    thinking: int = 0
    """thinking tokens of the full decodes"""
    answering: int = 0
    """answer tokens of the full decodes"""
    told: int = 0
    """traces that say whether they ended by themselves (``meta.natural``)"""
    capped: int = 0
    """among those, the ones that did not"""
    longest: int = 0
    """most thinking tokens of a decode"""
    at_longest: int = 0
    """decodes of that many"""
    bare: int = 0
    """decodes without a checkpoint"""
    checkpoints: int = 0
    exits_right: int = 0
    exit_tokens: int = 0
    """answer tokens of all exits"""
    dear_exits: int = 0
    """exits whose thinking and answer are more tokens than the full decode"""
    probes: int = 0
    """checkpoints with a trial answer"""
    seen: Counter[str] = field(default_factory=Counter)
    """signal -> checkpoints that have it"""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """signal -> least and greatest value"""
    settings: dict[str, Counter[str]] = field(default_factory=dict)
    """model and each of ``SETTINGS`` -> its values, as text, and how many traces say them"""
    families: dict[str, list[int]] = field(default_factory=dict)
    """family -> decodes, right ones"""
    samples: bool = False
    """whether these are samples of a question, not thoughts"""

    @property
    def exact_match(self) -> float:
        """Of the full decodes."""
        return self.right / self.traces

    @property
    def tokens(self) -> float:
        """Mean of a full decode."""
        return (self.thinking + self.answering) / self.traces

    def setting(self, name: str) -> str | None:
        """The value of a setting that most traces say; None where none says it."""
        values = self.settings.get(name)
        return values.most_common(1)[0][0] if values else None


def survey(folder: Path | str) -> Survey:
    """Count what a folder of traces holds; ``UserError`` as ``traces.store.iter_traces``."""
    found, questions = Survey(), set[str]()
    for part in iter_parts(folder):
        questions.update(part.column("question_id").to_pylist())
        _add_ends(found, part)
        _add_checkpoints(found, part)
        _add_settings(found, part)
    found.questions = len(questions)
    return found


def _add_ends(found: Survey, part: pa.Table) -> None:
    thinking = _ints(part.column("final_thinking_tokens"))
    found.traces += part.num_rows
    found.right += int(_ints(part.column("final_exact_match")).sum())
    found.thinking += int(thinking.sum())
    found.answering += int(_ints(part.column("final_answer_tokens")).sum())
    most = int(thinking.max(initial=0))
    if most > found.longest:
        found.longest, found.at_longest = most, 0
    found.at_longest += int((thinking == found.longest).sum())


def _add_checkpoints(found: Survey, part: pa.Table) -> None:
    places = part.column("thinking_tokens").combine_chunks()
    lengths = np.diff(places.offsets.to_numpy())
    full = _ints(part.column("final_thinking_tokens")) + _ints(part.column("final_answer_tokens"))
    answers = _flat(part, "exit_answer_tokens")
    found.bare += int((lengths == 0).sum())
    found.checkpoints += int(lengths.sum())
    found.exits_right += int(_flat(part, "exit_exact_match").sum())
    found.exit_tokens += int(answers.sum())
    spent = _flat(part, "thinking_tokens") + answers
    found.dear_exits += int((spent > np.repeat(full, lengths)).sum())
    found.probes += int((~np.isnan(_flat(part, "probe_tokens"))).sum())
    for column in part.column_names:
        if column.startswith(_SIGNAL):
            _add_signal(found, column.removeprefix(_SIGNAL), _flat(part, column))


def _add_signal(found: Survey, name: str, values: Floats) -> None:
    known = values[~np.isnan(values)]
    if not len(known):
        return
    low, high = found.ranges.get(name, (math.inf, -math.inf))
    found.ranges[name] = min(low, float(known.min())), max(high, float(known.max()))
    found.seen[name] += len(known)


def _add_settings(found: Survey, part: pa.Table) -> None:
    columns = (part.column(name).to_pylist() for name in ("meta", "task", "model"))
    matches = _ints(part.column("final_exact_match")).tolist()
    for text, task, model, right in zip(*columns, matches, strict=True):
        meta: Mapping[str, Any] = meta_of(text)
        found.samples |= meta.get("kind") == "samples"
        if isinstance(natural := meta.get("natural"), bool):
            found.told += 1
            found.capped += not natural
        count = found.families.setdefault(str(meta.get("family", task)), [0, 0])
        count[0] += 1
        count[1] += right
        said = {name: meta[name] for name in SETTINGS if name in meta} | {"model": model}
        for name, value in said.items():
            found.settings.setdefault(name, Counter())[str(value)] += 1


def _ints(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = column.to_numpy().astype(np.int64)
    return numbers


def _flat(part: pa.Table, name: str) -> Floats:
    """(m,) a column of the checkpoints, one trace after the other, NaN where it is missing."""
    column = part.column(name).combine_chunks().flatten()
    numbers: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers
