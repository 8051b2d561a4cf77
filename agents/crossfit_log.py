"""TensorBoard's view of a cross-fitted ensemble in training.

At each look, of what the members give on the fold that each left out: means over all members under
the names of a single policy's training (``agents.curves``), the gap closed by the members of each
kind and by each member. At the end the estimates of what is frozen: gap closed and savings beside
those of the best rule, by price as a figure and as a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import Logger

from rlbudget.agents.curves import (
    BESIDE,
    FRONTIER,
    FULL,
    GAP,
    GIVES_CHARTS,
    INK,
    NAMES,
    POLICY,
    RESULT,
    RULE,
    WORTH,
    Layout,
    describe_run,
    frontier_figure,
    lines,
    write_levels,
    writers,
)
from rlbudget.agents.members import Member
from rlbudget.agents.validation import Score

KINDS: Mapping[bool, str] = {False: "started from nothing", True: "started from the best rule"}
"""whether a member is warm -> what it is called"""
MEMBERS = "3 members"
OF_RULE = f"{BESIDE}/gap closed by the best rule"
CLOSED, SAVED = f"{RESULT}/gap closed", f"{RESULT}/saved where a point may be lost"
POINT = 0.01
LAYOUT: Layout = {
    WORTH: {
        "gap closed by members, beside the best rule (0: best constant budget, 1: knows the"
        " answers)": lines(NAMES["oracle_gap_closed"], *(f"{GAP}/{k}" for k in KINDS.values()),
                           OF_RULE),
    },
    **GIVES_CHARTS,
    "3 Do its members agree?": {
        "gap closed by each member on the questions it did not see": lines(f"{MEMBERS}/.*"),
    },
}  # fmt: skip
"""categories, charts and the curves of each, of the page Custom Scalars"""


class EnsembleLog:
    """Writes to a logger what the module says."""

    def __init__(self, logger: Logger, run: Mapping[str, Any], folds: int) -> None:
        self._logger, self._folds = logger, folds
        describe_run(logger, run, LAYOUT, (CLOSED, OF_RULE, SAVED))

    def look(self, done: int, members: Sequence[Member]) -> None:
        """Between two updates."""
        for warm, kind in KINDS.items():
            gaps = [one.score.mean_oracle_gap_closed for one in members if one.warm == warm]
            self._mean(f"{GAP}/{kind}", gaps)
        for one in members:
            name = f"{MEMBERS}/{KINDS[one.warm]}, {one.fold + 1} of {self._folds}"
            self._mean(name, [one.score.mean_oracle_gap_closed])
        for number, name in NAMES.items():
            each = [[getattr(row, number) for row in one.score.prices] for one in members]
            self._mean(name, np.ravel(each).tolist())
        self._logger.dump(step=done)

    def _mean(self, name: str, values: Sequence[float]) -> None:
        if not np.isnan(values).all():
            self._logger.record(name, float(np.nanmean(values)))

    def end(self, found: Mapping[str, Any], score: Score, step: int) -> None:
        """At the end: the estimates of ``agents.out_of_fold`` and their score."""
        rule, full = found["rule"]["oracle_gap_closed"], found["full"]
        saved = {row["max_em_loss"]: row["savings"] for row in found["savings"]}
        for name, value in {CLOSED: found["oracle_gap_closed"], SAVED: saved[POINT]}.items():
            if value is not None:
                self._logger.record(name, value)
        levels = {OF_RULE: rule, **{name: full[number] for number, name in FULL.items()}}
        write_levels(self._logger, levels, step)
        for writer in writers(self._logger):
            writer.add_text("result", table_of_prices(found), step)
        title = "On questions that none of the asked members has seen, by relative price"
        frontier = LoggedFigure(frontier_figure(score, title, full), close=True)
        self._logger.record(FRONTIER, frontier)
        self._logger.record(f"{GAP}/by price", LoggedFigure(price_figure(found), close=True))
        self._logger.dump(step=step)
        self._logger.close()


def price_figure(found: Mapping[str, Any]) -> Figure:
    """The gap closed at each price with its interval, beside the best rule and never stopping."""
    rows = [row for row in found["prices"] if row["oracle_gap_closed"] is not None]
    at = [f"{row['relative_price']:g}" for row in rows]
    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    ends = np.array([row["oracle_gap_closed_ci90"] for row in rows], dtype=np.float64)
    if len(rows):
        axes.fill_between(at, *ends.reshape(-1, 2).T, color=POLICY, alpha=0.15, lw=0)
    for name, key, line, colour in (
        ("the policy, with its interval", "oracle_gap_closed", "o-", POLICY),
        ("the best rule of each price", "rule_oracle_gap_closed", "s--", RULE),
        ("never stopping", "never", "^:", INK),
    ):
        axes.plot(at, [np.nan if row[key] is None else row[key] for row in rows], line,
                  color=colour, label=name)  # fmt: skip
    axes.axhline(0, color=INK, lw=0.6)
    axes.set_xlabel("relative price: the share of an answer's worth that a full decode costs")
    axes.set_ylabel("gap closed (0: the best constant budget)")
    axes.set_title(f"Out of fold, {found['questions']:,} questions, {found['level']:.0%} interval",
                   loc="left")  # fmt: skip
    axes.legend(frameon=False)
    return figure


def table_of_prices(found: Mapping[str, Any]) -> str:
    """The estimates at each price, and the savings, as Markdown."""
    shown = [
        f"Out of fold: every one of the {found['questions']:,} questions is asked by members that"
        f" have not seen it. Intervals of {found['level']:.0%}.\n",
        "**Savings**\n",
        "| may lose | saves | loses | the best rule saves |",
        "|---|---|---|---|",
    ]
    shown += [
        f"| {100 * row['max_em_loss']:g} pt | {row['savings']:.1%}"
        f" | {100 * row['em_loss']:.2f} pt | {row['rule_savings']:.1%} |"
        for row in found["savings"]
    ]
    shown += [
        "\n**By relative price**\n",
        "| relative price | exact match | tokens | gap closed | interval | best rule | its gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["prices"]:
        low, high = (_shown(value) for value in row["oracle_gap_closed_ci90"])
        shown.append(
            f"| {row['relative_price']:g} | {row['exact_match']:.3f} | {row['tokens']:.1f}"
            f" | {_shown(row['oracle_gap_closed'])} | {low} to {high} | {row['rule']}"
            f" | {_shown(row['rule_oracle_gap_closed'])} |"
        )
    return "\n".join(shown)


def _shown(value: float | None) -> str:
    return "none" if value is None or np.isnan(value) else f"{value:.3f}"
