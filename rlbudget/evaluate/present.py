"""The table of an evaluation, for people."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rlbudget.evaluate.tiles import rated

SHOWN_RELATIVE_PRICE = 0.1
WIDTH = 100


def at_shown_price(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Method -> its row of ``results`` at the relative price that is shown."""
    rows = evaluation["results"]
    return {r["method"]: r for r in rows if r["relative_price"] == SHOWN_RELATIVE_PRICE}


def shown(evaluation: Mapping[str, Any]) -> Group:
    """A title, the table at relative price 0.1, and what its columns mean."""
    rows, reference = at_shown_price(evaluation), _reference(evaluation)
    worth = 1 / next(iter(rows.values()))["token_price"]
    advice = Text("".join(f"{line}\n" for line in advised(evaluation)), style="bold")
    title = (
        f"{evaluation['held_out_questions']:,} held-out questions, every token counted\n"
        f"Relative price {SHOWN_RELATIVE_PRICE:g}: a right answer is worth {worth:,.0f} tokens\n"
    )
    table = Table(header_style="", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("EM", "tokens", "saved", "gap", "mean gap", "saved at ≤1 pt"):
        table.add_column(name, justify="right", no_wrap=True)
    if reference is not None:
        table.add_column(f"vs {reference}", no_wrap=True)
    summaries = {row["method"]: row for row in evaluation["summary"]}
    gaps = {
        name: summary["mean_oracle_gap_closed"]
        for name, summary in summaries.items()
        if summary["kind"] != "bound" and summary["mean_oracle_gap_closed"] is not None
    }
    best = max(gaps, key=gaps.__getitem__, default=None)
    for name, row in rows.items():
        # In bold the method that is no bound and closes most of the mean gap.
        style = "bold" if name == best else "dim" if row["kind"] == "bound" else ""
        table.add_row(*_cells(row, summaries[name], reference), style=style)
    efforts = evaluation.get("efforts")
    below = Group(Text(_EFFORTS), _efforts(efforts)) if efforts else ""
    return Group(advice, Text(title), table, below, _notes(evaluation, reference))


def advised(evaluation: Mapping[str, Any]) -> list[str]:
    """The lines of the recommendation, each sentence on lines of its own; then what that is worth
    in money and time, where rates were given."""
    said: Sequence[str] = evaluation.get("recommendation") or ()
    said = [*said, *(f"{number} {says}." for number, says in rated(evaluation))]
    return [
        line
        for sentence in said
        for line in textwrap.wrap(
            sentence, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]


_EFFORTS = "\nPoints of exact match that efforts may lose, and lost on the held-out questions [95%]"


def _efforts(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the efforts of the policies promise and give, points of exact match."""
    table = Table(
        header_style="", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )  # fmt: skip
    table.add_column("effort", no_wrap=True)
    for name in ("may lose", "lost, held out", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    several = len({row["method"] for row in rows}) > 1
    for row in rows:
        low, high = row["held_out_em_loss_ci95"]
        sure = " certified" if row["certified"] else ""
        table.add_row(
            f"{row['method']}: {row['effort']}" if several else row["effort"],
            f"{100 * row['max_em_loss']:g}{sure}",
            f"{_points(row['held_out_em_loss'])} [{_points(low)}, {_points(high)}]"
            if row["token_price"] else "never stops",
            f"{row['held_out_savings']:.1%}",
        )  # fmt: skip
    return table


def _points(loss: float) -> str:
    return f"{round(100 * loss, 1) + 0.0:.1f}"


def _cells(
    row: Mapping[str, Any], summary: Mapping[str, Any], reference: str | None
) -> Iterator[str]:
    spread = summary.get("over_folds", {}).get("mean_oracle_gap_closed", {}).get("std")
    change = round(-100 * summary["held_out_em_loss"]["0.01"], 1) + 0.0
    yield row["method"]
    yield f"{row['exact_match']:.1%}"
    yield f"{row['tokens']['total']:,.1f}"
    yield f"{1 - row['token_fraction']:.1%}"
    yield _share(row["oracle_gap_closed"])
    yield _share(summary["mean_oracle_gap_closed"]) + ("" if spread is None else f" ±{spread:.2f}")
    yield f"{summary['savings_at_em_loss']['0.01']:.1%} ({change:+.1f})"
    if reference is not None:
        yield summary["versus"].get(reference, {"verdict": ""})["verdict"]


def _reference(evaluation: Mapping[str, Any]) -> str | None:
    """The policy that the others are compared with: the first one."""
    compared = {r for row in evaluation["summary"] for r in row["versus"]} - {"full"}
    return next((r["method"] for r in evaluation["summary"] if r["method"] in compared), None)


def table_text(evaluation: Mapping[str, Any]) -> str:
    """The table as plain text."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, markup=False, emoji=False).print(
        shown(evaluation)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}"


def _notes(evaluation: Mapping[str, Any], reference: str | None) -> Text:
    lines = [
        "gap: closed, 0 is the best constant budget, 1 the oracle, which knows the",
        "target; mean gap: over six relative prices from 0.02 to 0.5;",
        "saved at ≤1 pt: tuned to lose at most 1 point of EM on training questions,",
        "a policy on those that only validated it; in brackets how EM then changes",
        "on the held-out questions, in points.",
    ]
    if evaluation["folds"] > 1:
        lines.append(f"±: standard deviation over {evaluation['folds']} folds.")
    measures = {v["measure"] for row in evaluation["summary"] for v in row["versus"].values()}
    by = "by mean gap; see evaluation.json."
    if measures == {"utility"}:
        by = "by mean utility over the prices."
        end = "" if reference else " nothing to close."
        lines.append(f"no price has a gap between the oracle and the best constant budget:{end}")
    if reference is not None:
        lines.append(f"vs {reference}: {by}")
    lines += [
        f"{entry['method']}: not applicable, needs {' and '.join(entry['needs'])}"
        for entry in evaluation["not_applicable"]
    ]
    return Text("\n" + "\n".join([*lines, *evaluation.get("notes", ())]), style="dim")
