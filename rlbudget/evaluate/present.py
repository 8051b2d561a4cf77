"""The table of an evaluation, for people."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

SHOWN_RELATIVE_PRICE = 0.1
WIDTH = 100


def shown(evaluation: Mapping[str, Any]) -> Group:
    """A title, the table at relative price 0.1, and what its columns mean."""
    price = next(
        row["token_price"]
        for row in evaluation["results"]
        if row["relative_price"] == SHOWN_RELATIVE_PRICE
    )
    title = (
        f"{evaluation['held_out_questions']:,} held-out questions, every token counted\n"
        f"Relative price {SHOWN_RELATIVE_PRICE:g}:"
        f" a right answer is worth {1 / price:,.0f} tokens\n"
    )
    return Group(Text(title, style="bold"), _table(evaluation), _notes(evaluation))


def _table(evaluation: Mapping[str, Any]) -> Table:
    """One row a method; in bold the one that is no bound and closes most of the mean gap."""
    rows = {
        row["method"]: row
        for row in evaluation["results"]
        if row["relative_price"] == SHOWN_RELATIVE_PRICE
    }
    table = Table(header_style="", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("EM", "tokens", "saved", "gap", "mean gap", "saved at ≤1 pt"):
        table.add_column(name, justify="right", no_wrap=True)
    summaries = {row["method"]: row for row in evaluation["summary"]}
    gaps = {
        name: summary["mean_oracle_gap_closed"]
        for name, summary in summaries.items()
        if summary["kind"] != "bound" and summary["mean_oracle_gap_closed"] is not None
    }
    best = max(gaps, key=gaps.__getitem__) if gaps else None
    reference = _reference(evaluation)
    if reference is not None:
        table.add_column(f"vs {reference}", no_wrap=True)
    for name, row in rows.items():
        summary = summaries[name]
        style = "bold" if name == best else "dim" if row["kind"] == "bound" else ""
        table.add_row(
            name,
            f"{row['exact_match']:.1%}",
            f"{row['tokens']['total']:,.1f}",
            f"{1 - row['token_fraction']:.1%}",
            _share(row["oracle_gap_closed"]),
            _share(summary["mean_oracle_gap_closed"]) + _over_folds(summary),
            f"{summary['savings_at_em_loss']['0.01']:.1%}"
            f" ({_points(-summary['held_out_em_loss']['0.01'])})",
            *([] if reference is None else [_verdict(summary, reference)]),
            style=style,
        )
    return table


def _over_folds(summary: Mapping[str, Any]) -> str:
    """The spread of the mean gap closed."""
    spread = summary.get("over_folds", {}).get("mean_oracle_gap_closed", {}).get("std")
    return "" if spread is None else f" ±{spread:.2f}"


def _reference(evaluation: Mapping[str, Any]) -> str | None:
    """The policy that the others are compared with: the first one."""
    compared = {r for row in evaluation["summary"] for r in row["versus"]} - {"full"}
    return next((r["method"] for r in evaluation["summary"] if r["method"] in compared), None)


def _verdict(summary: Mapping[str, Any], reference: str) -> str:
    found = summary["versus"].get(reference)
    return "" if found is None else str(found["verdict"])


def table_text(evaluation: Mapping[str, Any]) -> str:
    """The table as plain text."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, markup=False, emoji=False).print(
        shown(evaluation)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}"


def _points(change: float) -> str:
    return f"{round(100 * change, 1) + 0.0:+.1f}"


def _about_verdicts(evaluation: Mapping[str, Any]) -> list[str]:
    """What the last column compares."""
    reference = _reference(evaluation)
    measures = {v["measure"] for row in evaluation["summary"] for v in row["versus"].values()}
    if measures == {"utility"}:
        return [
            "no price has a gap between the oracle and the best constant budget:"
            + (" nothing to close." if reference is None else ""),
            *([] if reference is None else [f"vs {reference}: by mean utility over the prices."]),
        ]
    return [] if reference is None else [f"vs {reference}: by mean gap; see evaluation.json."]


def _notes(evaluation: Mapping[str, Any]) -> Text:
    lines = [
        "gap: closed, 0 is the best constant budget, 1 the oracle, which knows the",
        "target; mean gap: over six relative prices from 0.02 to 0.5;",
        "saved at ≤1 pt: tuned to lose at most 1 point of EM on training questions,",
        "a policy on those that only validated it; in brackets how EM then changes",
        "on the held-out questions, in points.",
        *(
            [f"±: standard deviation over {evaluation['folds']} folds."]
            if evaluation["folds"] > 1
            else []
        ),
        *_about_verdicts(evaluation),
        *(
            f"{entry['method']}: not applicable, needs {' and '.join(entry['needs'])}"
            for entry in evaluation["not_applicable"]
        ),
        *evaluation.get("notes", ()),
    ]
    return Text("\n" + "\n".join(lines), style="dim")
