"""Correction: an exit that looks wrong is taken back, and the model thinks on.

Once an exit's answer is written, more is known than before it: how sure the model was of its
words. Where the risk that the answer is lost, seen with that knowledge, is above a threshold,
the thinking is resumed where it was left, for a small budget or to its natural end, and answers
anew. Every token is charged: the first answer, the thinking after it, the second answer. The
threshold is chosen on training questions at a price; where no threshold pays, it stays off.

Two corrections cost nothing: ``repaired`` mends the form of an answer, and where a policy of the
``probe`` preset has paid for trial answers, ``majority_answer`` of them can take the place of the
exit's; ``majority`` says on a replay whether it should.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.errors import UserError
from rlbudget.evaluate.outcomes import NATURAL_END, Floats, Ints, Outcome, utility
from rlbudget.evaluate.replay import Replay
from rlbudget.observation import observe
from rlbudget.strategies.impact import ImpactModel

EXIT_FEATURES = ("probe_confidence", "exit_entropy")
"""What an exit's answer tells, beside the policy's own observation."""
OFF = float("inf")


def repaired(answer: str) -> str:
    """An answer without the wrapping that makes an exact match fail: ``$12.0$`` -> ``12``.

    Takes away LaTeX boxes and dollar signs, "the answer is", "x =", a final full stop, thousands
    separators and empty decimals. Costs no token, and leaves what is none of these as it is.
    """
    text = answer.strip()
    boxed = re.search(r"\\boxed\{([^{}]*)\}", text)
    if boxed:
        text = boxed.group(1)
    text = text.strip("$ \n\t")
    text = re.sub(r"(?i)^(?:so,? )?(?:the )?(?:final )?answer(?: is|:)\s*", "", text)
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)
    text = text.rstrip(".").strip()
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def majority_answer(answers: Sequence[str]) -> str:
    """The most frequent of the answers seen so far, in their order; of equal ones the latest.

    Raises ``ValueError`` for none.
    """
    if not answers:
        raise ValueError("there is no answer to take")
    latest = {answer: place for place, answer in enumerate(answers)}
    return max(latest, key=lambda answer: (answers.count(answer), latest[answer]))


@dataclass(frozen=True, slots=True)
class Resume:
    """When to take an exit back, and for how long to think on."""

    impact: ImpactModel
    """reads the policy's observation and ``EXIT_FEATURES``"""
    threshold: float
    """risk above which the thinking is resumed; ``OFF`` for never"""
    budget: int | None
    """thinking tokens before the second exit; None for the natural end"""


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did to a replay."""

    outcome: Outcome
    resumed: npt.NDArray[np.bool_]
    """(n,) whether the exit of the trace was taken back"""
    extra_tokens: Ints
    """(n,) tokens beyond those of the first exit"""
    recovered: npt.NDArray[np.bool_]
    """(n,) wrong before, right after"""
    broken: npt.NDArray[np.bool_]
    """(n,) right before, wrong after"""


def risk_at_stops(resume: Resume, done: Replay) -> Floats:
    """(n,) the risk of each exit, 0 where the trace ran to its natural end."""
    table = done.table
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    rows = table.offsets[stopped] + done.stops[stopped]
    risk = np.zeros(len(table))
    if len(stopped):
        risk[stopped] = resume.impact.risk(observe(table, resume.impact.features)[rows])
    return risk


def correct(resume: Resume, done: Replay, risk: Floats | None = None) -> Corrected:
    """Take back the risky exits of a replay. ``risk`` spares computing ``risk_at_stops``."""
    table, before = done.table, done.outcome
    if risk is None:
        risk = risk_at_stops(resume, done)
    resumed = (done.stops != NATURAL_END) & (risk > resume.threshold)
    exact_match = before.exact_match.copy()
    thinking, answer = before.thinking.copy(), before.answer.copy()
    for trace in np.flatnonzero(resumed).tolist():
        start, end = int(table.offsets[trace]), int(table.offsets[trace + 1])
        first = start + int(done.stops[trace])
        later = np.zeros(0, dtype=np.int64)
        if resume.budget is not None:
            least = table.thinking_tokens[first] + resume.budget
            later = np.flatnonzero(table.thinking_tokens[first + 1 : end] >= least)
        if len(later):
            row = first + 1 + int(later[0])
            exact_match[trace] = table.exit_exact_match[row]
            thinking[trace] = table.thinking_tokens[row]
            answer[trace] += table.exit_answer_tokens[row]
        else:
            exact_match[trace] = table.final_exact_match[trace]
            thinking[trace] = table.final_thinking_tokens[trace]
            answer[trace] += table.final_answer_tokens[trace]
    after = Outcome(exact_match, thinking, before.probe, answer)
    return Corrected(
        outcome=after,
        resumed=resumed,
        extra_tokens=(after.tokens - before.tokens).astype(np.int64),
        recovered=(before.exact_match == 0) & (exact_match == 1),
        broken=(before.exact_match == 1) & (exact_match == 0),
    )


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


def tune(
    impact: ImpactModel,
    done: Replay,
    token_price: float,
    *,
    budgets: Sequence[int | None] = (None,),
    most_extra: float | None = None,
) -> Resume:
    """The threshold and budget of highest mean utility on a replay of training questions.

    ``most_extra`` bounds the extra tokens, as a share of those that the stops save. Where nothing
    pays, the threshold is ``OFF``. Raises ``UserError`` for a bound below 0.
    """
    if most_extra is not None and most_extra < 0:
        raise UserError(f"most_extra must be at least 0, not {most_extra:g}")
    before = done.outcome
    saved = float(done.table.full_tokens.sum() - before.tokens.sum())
    best = Resume(impact, OFF, None)
    highest = float(utility(before, token_price).mean())
    risk = risk_at_stops(best, done)
    known = risk[risk > 0] if risk.any() else np.zeros(1)
    levels: Floats = np.unique(np.quantile(known, np.linspace(0, 1, 60)))
    for budget in budgets:
        for level in levels:
            tried = Resume(impact, float(level), budget)
            after = correct(tried, done, risk)
            if most_extra is not None and after.extra_tokens.sum() > most_extra * saved:
                continue
            value = float(utility(after.outcome, token_price).mean())
            if value > highest:
                best, highest = tried, value
    return best
