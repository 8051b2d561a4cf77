"""What a chooser looks at, as columns by name.

===================  =======================================================================
log_price            logarithm of the token price
record.0, …          exact match of each member so far on the question's task
question_*           the question's own numbers (``rlbudget.signals.questions``)
0.SIGNAL, …          of a member that has answered: its free observation at the stop, or at
                     the last checkpoint before its natural end
0.thinking_check, …  the re-check of what it wrote, where the text was stored
0.stopped            whether it was stopped
0.thinking, 0.answer logarithms of 1 + its tokens
0.agrees             share of the other members that answer the same, once all have answered
===================  =======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import Replay
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.strategies.chooser.members import Played, When
from rlbudget.strategies.chooser.together import Member

Columns = dict[str, Floats]


def columns_of(played: Played, record: Floats, when: When) -> Columns:
    """The columns (n,) of all that is known when the choice is made.

    ``record`` (n, k) is the members' exact match so far, NaN where none is known.
    """
    together = played.together
    columns = known_before(together.context, record, played.token_price)
    if when == "before":
        return columns
    members = list(zip(together.members, played.replays, strict=True))
    for place, (member, done) in enumerate(members if when == "after_all" else members[:1]):
        columns |= named(place, ending(member, done))
    return columns | (agreement(played.answers) if when == "after_all" else {})


def known_before(context: Floats, record: Floats, token_price: float) -> Columns:
    """Of questions with these ``CONTEXT_SIGNALS``, (n, 10)."""
    columns = dict(zip(CONTEXT_SIGNALS, context.T, strict=True))
    columns["log_price"] = np.full(len(context), math.log(token_price))
    return columns | {f"record.{place}": own for place, own in enumerate(record.T)}


def ending(member: Member, done: Replay) -> Columns:
    """How a member ended each of its ``n`` decodes; NaN where it came to no checkpoint."""
    table, stopped = member.table, done.stops != NATURAL_END
    some = np.flatnonzero(table.lengths)
    rows = table.offsets[:-1] + np.where(stopped, done.stops, table.lengths - 1)
    columns = {}
    for name, values in member.seen.items():
        columns[name] = np.full(len(table), np.nan)
        columns[name][some] = values[rows[some]]
        if name in member.checks:
            columns[name] = np.where(stopped, columns[name], member.checks[name])
    outcome = done.outcome
    return columns | tokens_of(stopped, outcome.thinking, outcome.answer)


def tokens_of(stopped: npt.ArrayLike, thinking: npt.ArrayLike, answer: npt.ArrayLike) -> Columns:
    """What is known of decodes without any checkpoint, (n,) each."""
    return {
        "stopped": np.asarray(stopped, dtype=np.float64),
        "thinking": np.log1p(np.asarray(thinking, dtype=np.float64)),
        "answer": np.log1p(np.asarray(answer, dtype=np.float64)),
    }


def named(member: int, columns: Mapping[str, Floats]) -> Columns:
    """The columns of one member among all."""
    return {f"{member}.{name}": column for name, column in columns.items()}


def agreement(answers: Ints) -> Columns:
    """(k, n) the members' answers, equal numbers for equal ones, -1 for one that is missing."""
    same = (answers[:, None] == answers[None]).sum(axis=1) - 1.0
    share = same / (len(answers) - 1)
    return {f"{member}.agrees": own for member, own in enumerate(share)}


def matrix(columns: Mapping[str, Floats], names: Sequence[str], otherwise: Floats) -> Floats:
    """(n, features) the columns of these names; what is missing or NaN is ``otherwise`` (F,)."""
    n = len(next(iter(columns.values())))
    missing = np.full(n, np.nan)
    rows = np.stack([columns.get(name, missing) for name in names], axis=1)
    filled: Floats = np.where(np.isnan(rows), otherwise, rows)
    return filled
