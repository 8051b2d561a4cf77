"""Which questions nothing has seen: where to split traces, and what to leave out of the held-out
part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Bools, Strs
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.seen import NONE, Marks, Texts, as_text, from_text, marks_of, seen_by, texts_of
from rlbudget.traces.store import iter_questions
from rlbudget.traces.table import Split, TraceTable, split_questions

Before = Mapping[str, Mapping[str, Any]]
"""name -> what a policy, guard or blend was fitted to: ``seen``, the marks of its questions as
text, ``split_seed`` of the traces, and ``certified_on``, marks as text, where known"""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Traces in three parts, of which nothing has seen the last."""

    split: Split
    seed: int
    """of the split"""
    notes: list[str]
    """what was left out, and what is not known"""
    texts: Texts

    @property
    def used(self) -> str:
        """Marks of the training and validation questions, as text."""
        parts = (self.split.train, self.split.validation)
        ids = [question for part in parts for question in part.question_ids.tolist()]
        return as_text(marks_of(ids, self.texts))


def fitted_to(policy: Policy) -> Mapping[str, Any]:
    """What a policy was made with."""
    config = policy.config
    return {
        "seen": config.get("seen"),
        "split_seed": (config["trained"].get("traces") or {}).get("split_seed"),
        "certified_on": (config["calibration"] or {}).get("seen"),
    }


def split_unseen(table: TraceTable, traces: Any, fitted: Before, seed: int = 0) -> Unseen:
    """The split that ``fitted`` were made with, without held-out questions that they have seen.

    ``traces`` is the folder of ``table``, whose texts tell the same question under another id.
    ``seed`` is taken where nothing has seen any of these questions. Raises ``UserError`` as
    ``split_questions`` and ``unseen_rows`` do.
    """
    texts = texts_of(iter_questions(traces, of=table.question_ids))
    own = split_seed_of(fitted, table.question_ids, texts, seed)
    split = split_questions(table, seed=own)
    rows, notes = unseen_rows(split.held_out.question_ids, texts, fitted)
    held_out = split.held_out.take(np.flatnonzero(rows))
    return Unseen(replace(split, held_out=held_out), own, notes, texts)


def split_seed_of(fitted: Before, question_ids: Strs, texts: Texts, seed: int = 0) -> int:
    """That of the first that has seen some of these questions, or does not say; else ``seed``."""
    for of in fitted.values():
        known = of.get("seen")
        touched = known is None or seen_by(from_text(known), question_ids, texts).any()
        if of.get("split_seed") is not None and touched:
            return int(of["split_seed"])
    return seed


def unseen_rows(
    question_ids: Strs, texts: Texts, fitted: Before, what: str = "held-out"
) -> tuple[Bools, list[str]]:
    """(n,) which of the traces are of questions that none of ``fitted`` has seen, and notes.

    Raises ``UserError`` where no question is left.
    """
    left: Bools = np.ones(len(question_ids), dtype=bool)
    notes = []
    for name, of in fitted.items():
        if of.get("seen") is None:
            notes.append(
                f"{name}: does not say which questions it has seen; if some are {what} here, its"
                " numbers are too good"
            )
            continue
        known = seen_by(from_text(of["seen"]), question_ids, texts)
        if known.any():
            count = len(np.unique(question_ids[known]))
            notes.append(f"{name}: has seen {count} of the {what} questions; they are left out")
            left &= ~known
        chosen: Marks = NONE if of.get("certified_on") is None else from_text(of["certified_on"])
        if seen_by(chosen, question_ids[left], texts).any():
            notes.append(
                f"{name}: its efforts were chosen and certified on some of the {what} questions;"
                " their numbers are too good"
            )
    if len(left) and not left.any():
        raise UserError(
            f"every {what} question of these traces was seen by {' or '.join(fitted)}: there is"
            " nothing left to measure on; record others"
        )
    return left, notes


def folder_texts(*folders: Path | str) -> Texts:
    """The marks of the texts of several folders, by question id."""
    found: dict[str, set[int]] = {}
    for folder in folders:
        for question_id, marks in texts_of(iter_questions(folder)).items():
            found.setdefault(question_id, set()).update(marks)
    return found
