"""Majority: the most frequent of the trial answers that were paid for takes the exit's place.

That needs a policy of the ``probe`` preset. It costs no token more; a replay says whether it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.errors import UserError
from rlbudget.evaluate.outcomes import NATURAL_END, Outcome
from rlbudget.evaluate.replay import Replay
from rlbudget.tasks.scorers import vote_key

if TYPE_CHECKING:
    from rlbudget.decode import Decoded


def majority_answer(answers: Sequence[str]) -> str:
    """The most frequent of the answers seen so far, in their order; of equal ones the latest.

    Raises ``ValueError`` for none.
    """
    if not answers:
        raise ValueError("there is no answer to take")
    votes = [vote_key(answer) for answer in answers]
    latest = {vote: place for place, vote in enumerate(votes)}
    most = max(latest, key=lambda vote: (votes.count(vote), latest[vote]))
    return answers[latest[most]]


def majority_of(decoded: Decoded) -> str:
    """The answer of a live decode, or the majority of its trial answers where that is another.

    Only a stop under a policy of the ``probe`` preset has them.
    """
    if not decoded.trials:
        return decoded.answer
    most = majority_answer(decoded.trials)
    return decoded.answer if vote_key(most) == vote_key(decoded.trials[-1]) else most


def majority(done: Replay) -> Outcome:
    """Answer with the majority of the trial answers up to each stop, the stop's among them.

    At a checkpoint the exit's answer is the trial answer's, written out, so it is right where that
    exit is. Raises ``UserError`` for a policy that does not pay for a trial answer at every
    checkpoint.
    """
    table, before = done.table, done.outcome
    if done.charged != "until_stop":
        raise UserError("a majority needs trial answers: take a policy of the probe preset")
    exact_match = before.exact_match.copy()
    for trace in np.flatnonzero(done.stops != NATURAL_END).tolist():
        start = int(table.offsets[trace])
        seen = table.probe_answer[start : start + int(done.stops[trace]) + 1]
        codes, counts = np.unique(seen, return_counts=True)
        latest = [int(np.flatnonzero(seen == code)[-1]) for code in codes]
        place = max(zip(counts.tolist(), latest, strict=True))[1]
        exact_match[trace] = table.exit_exact_match[start + place]
    return Outcome(exact_match, before.thinking, before.probe, before.answer)
