"""The report: an evaluation and what its policies did, decode by decode, as one HTML file.

It shows answers lost and gained, where and how surely a policy stopped. The file opens from disk
and loads nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Ints
from rlbudget.evaluate.excerpt import beginning, ending, excerpts
from rlbudget.evaluate.palette import styles
from rlbudget.evaluate.tiles import tiles
from rlbudget.files import write_text
from rlbudget.policy.outcomes import NATURAL_END, Outcome, full_stops, outcome
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace, family_of

PLACE, STYLE, SCRIPT = "/*REPORT*/null", "/*STYLE*/", "/*SCRIPT*/"
"""what the data, the style and the scripts take the place of in ``page/page.html``"""
SCRIPTS = ("lines.js", "cases.js", "start.js")
MOST_CASES = 40
BINS = 10
AROUND = 700
"""characters of thinking shown on each side of a cut"""
BY = {
    "length": "question_characters",
    "numbers": "question_numbers",
    "clauses": "question_clauses",
}
"""what the questions are divided by -> the signal of ``rlbudget.signals.questions``"""
THIRDS = ("low", "middle", "high")


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """A group of decodes under one policy; means over the group, tokens are thinking tokens."""

    by: str
    """``family``, or what of ``BY``"""
    group: str
    traces: int
    full_tokens: float
    full_exact_match: float
    tokens: float
    exact_match: float


@dataclass(frozen=True, slots=True)
class Cases:
    """What one policy did at one token price, JSON-ready."""

    lost: list[dict[str, Any]]
    """decodes whose full answer is right and whose early one is wrong, at most ``MOST_CASES``"""
    gained: list[dict[str, Any]]
    n_lost: int
    n_gained: int
    calibration: list[dict[str, float]]
    """by bins of the stop probability: how often stopping there was no worse than going on"""
    stops: list[dict[str, float]]
    """by tenths of the full thinking: the share of decodes stopped there"""
    natural: float
    """share of decodes that were never stopped"""
    contexts: list[QuestionGroup]
    """where it stops early and where late"""


def cases_of(policy: StopPolicy, traces: Sequence[Trace], token_price: float) -> Cases:
    """Replay a policy on traces. Text is shown where the recording kept it."""
    table = table_of(traces, context=True)
    replayed = replay(policy, table, nearest_price(token_price, policy.price_range))
    stops, chance = replayed.stops, replayed.chance
    full, stopped = outcome(table, full_stops(table)), replayed.outcome
    change = stopped.exact_match - full.exact_match
    lost, gained = np.flatnonzero(change < 0), np.flatnonzero(change > 0)
    reached = ~np.isnan(chance)
    natural = table.final_exact_match[table.trace_of_row]
    return Cases(
        lost=_shown(traces, stops, lost[:MOST_CASES]),
        gained=_shown(traces, stops, gained[:MOST_CASES]),
        n_lost=len(lost),
        n_gained=len(gained),
        calibration=_calibration(
            chance[reached], table.exit_exact_match[reached], natural[reached]
        ),
        stops=_places(table.final_thinking_tokens, stopped.thinking, stops),
        natural=float((stops == NATURAL_END).mean()),
        contexts=groups_of(stopped, table, [family_of(trace) for trace in traces]),
    )


def _shown(traces: Sequence[Trace], stops: Ints, which: Ints) -> list[dict[str, Any]]:
    short = excerpts([traces[i].question for i in which])
    return [
        {"excerpt": line, **_case(traces[i], int(stops[i]))}
        for i, line in zip(which, short, strict=True)
    ]


def _case(trace: Trace, stop: int) -> dict[str, Any]:
    point = trace.checkpoints[stop]
    shown: dict[str, Any] = {
        "question": trace.question,
        "target": trace.target,
        "full_answer": trace.final.answer,
        "early_answer": point.exit.answer,
        "full_tokens": trace.final.thinking_tokens + trace.final.answer_tokens,
        "early_tokens": point.thinking_tokens + point.exit.answer_tokens,
    }
    thinking, cuts = trace.meta.get("thinking"), trace.meta.get("cuts")
    if isinstance(thinking, str) and isinstance(cuts, list) and stop < len(cuts):
        cut = int(cuts[stop])
        shown["before"] = ending(thinking[:cut], AROUND)
        shown["after"] = beginning(thinking[cut:], AROUND, sentences=False)
    return shown


def _calibration(chance: Any, exits: Any, natural: Any) -> list[dict[str, float]]:
    place = np.minimum((chance * BINS).astype(np.int64), BINS - 1)
    found = []
    for k in range(BINS):
        inside = place == k
        if inside.any():
            found.append(
                {
                    "chance": float(chance[inside].mean()),
                    "no_worse": float((exits[inside] >= natural[inside]).mean()),
                    "right": float(exits[inside].mean()),
                    "checkpoints": int(inside.sum()),
                }
            )
    return found


def _places(full: Any, thinking: Any, stops: Any) -> list[dict[str, float]]:
    stopped = stops != NATURAL_END
    share = thinking[stopped] / np.maximum(full[stopped], 1)
    counts, edges = np.histogram(share, bins=BINS, range=(0, 1))
    return [
        {"from": float(a), "to": float(b), "share": float(count / max(len(full), 1))}
        for a, b, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def groups_of(done: Outcome, table: TraceTable, families: Sequence[str]) -> list[QuestionGroup]:
    """Divide what a policy did on n traces; ``families`` has one name for each.

    The table needs the signals of ``signals.questions`` (``load_table(context=True)``) for the
    groups by length and complexity; traces without a checkpoint are left out of those.
    """

    def group(by: str, name: str, chosen: np.ndarray) -> QuestionGroup:
        return QuestionGroup(
            by=by,
            group=name,
            traces=len(chosen),
            full_tokens=float(table.final_thinking_tokens[chosen].mean()),
            full_exact_match=float(table.final_exact_match[chosen].mean()),
            tokens=float(done.thinking[chosen].mean()),
            exact_match=float(done.exact_match[chosen].mean()),
        )

    named = np.asarray(families, dtype=np.str_)
    found = [group("family", str(name), np.flatnonzero(named == name)) for name in np.unique(named)]
    some = np.flatnonzero(table.lengths > 0)
    for by, signal in BY.items():
        if signal not in table.signals:
            continue
        value = table.signals[signal][table.offsets[some]]
        third = np.searchsorted(np.quantile(value, [1 / 3, 2 / 3]), value, side="left")
        if len(np.unique(third)) > 1:
            found += [
                group(by, name, some[third == place])
                for place, name in enumerate(THIRDS)
                if (third == place).any()
            ]
    return found


def write_report(
    file: Path, evaluation: Mapping[str, Any], cases: Mapping[str, Cases], relative_price: float
) -> None:
    """Write the report of an evaluation (what ``evaluation.json`` holds).

    ``cases`` are those of its policies at ``relative_price``.
    """
    data = {
        "evaluation": evaluation,
        "relative_price": relative_price,
        "cases": {name: asdict(found) for name, found in cases.items()},
        "tiles": tiles(evaluation),
        "styles": {name: asdict(style) for name, style in styles(evaluation).items()},
    }
    # Inside a script element only "</" and "<!--" could end it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    folder = files("rlbudget.evaluate") / "page"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    page = read("page.html").replace(STYLE, "\n" + read("style.css"))
    page = page.replace(SCRIPT, "".join(map(read, SCRIPTS)))
    write_text(file, page.replace(PLACE, text))
