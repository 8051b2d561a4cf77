"""An experiment as it is shown, and what it is declared with where nobody says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
from rich.table import Table
from sqlalchemy import Engine

from rlbudget.serve.store.reading import last_lines
from rlbudget.serve.store.tables import DECISIONS
from rlbudget.strategies.experiments.design import Design, Experiment
from rlbudget.strategies.experiments.results import ArmResult, Compared, as_json

_BEFORE = 1_000
"""decisions before an experiment that say what a request usually takes"""


def with_usual(engine: Engine, design: Design) -> Design:
    """The design with the usual tokens of the latest requests, where it names none."""
    if design.usual_tokens > 0:
        return design
    spent = []
    for line in last_lines(engine, DECISIONS, _BEFORE):
        stop = line.get("stop", {})
        spent.append(sum(stop.get(f"{kind}_tokens", 0) for kind in ("thinking", "probe", "answer")))
    if not spent:
        return design
    usual = min(sum(spent) / len(spent), design.most_tokens)
    most = min(design.most_tokens, max(4 * max(spent), 64))
    return replace(design, usual_tokens=usual, most_tokens=most)


def status_json(experiment: Experiment, results: Sequence[ArmResult]) -> dict[str, Any]:
    """What ``experiment status --json`` prints."""
    known: dict[str, Any] = msgspec.to_builtins(experiment)
    return {**known, "results": [as_json(one) for one in results]}


def status_table(experiment: Experiment, results: Sequence[ArmResult]) -> Table:
    """The table of ``experiment status``: a column an arm, differences to the control."""
    table = Table(header_style="", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(f"less {experiment.design.control.name}", no_wrap=True)
    for one in results:
        table.add_column(one.arm, justify="right", no_wrap=True)

    def row(name: str, *cells: str) -> None:
        table.add_row(name, *cells)

    row("status", *(experiment.arms[one.arm].status for one in results))
    row("units", *(f"{one.requests:,}" for one in results))
    row("tokens", *(_number(one.tokens.mean, "+.0f") for one in results))
    row("  interval", *(_interval(one.tokens, 1, "+.0f") for one in results))
    row("saved", *(_number(one.saving[0], ".1%") for one in results))
    row("audited", *(f"{one.exact_match.n:,}" for one in results))
    row("exact match, points", *(_number(100 * one.exact_match.mean, "+.2f") for one in results))
    row("  interval", *(_interval(one.exact_match, 100, "+.2f") for one in results))
    row("told how content", *(f"{one.satisfaction.n:,}" for one in results))
    row("satisfaction, points", *(_number(100 * one.satisfaction.mean, "+.1f") for one in results))
    row("  interval", *(_interval(one.satisfaction, 100, "+.1f") for one in results))
    row("verdict", *(one.verdict for one in results))
    return table


def _number(value: float, spelled: str) -> str:
    return "–" if math.isnan(value) else format(value, spelled)


def _interval(one: Compared, scale: float, spelled: str) -> str:
    low, high = one.interval
    return f"{scale * low:{spelled}} to {scale * high:{spelled}}" if one.n else "–"
