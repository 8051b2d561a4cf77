"""The frontier figure: exact match against tokens, one line a method, drawn from an evaluation.

Lines look as they do in the report (``evaluate.palette``) and are named beside the axes, the best
first; what the report hides at first is drawn thin and named below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.evaluate.canvas import INK, QUIET, RULE_LINE, drawn, set_plain, set_title
from rlbudget.evaluate.palette import FAINT, Style, styles
from rlbudget.files import write_bytes


def draw_frontier(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Write ``frontier.png`` and ``frontier.svg`` of an evaluation into ``folder``.

    Needs matplotlib (``UserError`` without it); touches no global setting of it.
    """

    def draw(figure: Any, halo: Any) -> None:
        _draw(figure, evaluation)

    for name, content in drawn(draw, "png", "svg", size=(9, 4.9)).items():
        write_bytes(folder / f"frontier.{name}", content)


def _draw(figure: Any, evaluation: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    full = evaluation["full"]
    lines: dict[str, Floats] = {
        entry["method"]: np.array([(p["tokens"], 100 * p["exact_match"]) for p in entry["points"]])
        for entry in evaluation["frontier"]
    }
    learned = {entry["method"] for entry in evaluation["frontier"] if entry["kind"] == "learned"}
    known = {name: style for name, style in styles(evaluation).items() if name in lines}
    faint = [name for name, style in known.items() if not style.shown]
    for name in faint:
        axes.plot(*lines[name].T, color=FAINT[0], lw=0.6, zorder=2)
    shown = [name for name in known if name not in faint]
    handles = [_line(axes, lines[name], known[name], name in learned)[0] for name in shown]

    spot = np.array([full["tokens"]["total"], 100 * full["exact_match"]])
    axes.axhline(spot[1], color=RULE_LINE, lw=1, zorder=1)
    handles += axes.plot(*spot, "D", color=INK, ms=7, mec="white", mew=1.2, zorder=6)
    named = [*shown, "full decode"]
    legend = figure.legend(
        handles, named, loc="outside right upper", frameon=False, handlelength=3.6,
        labelspacing=0.7, labelcolor=INK, fontsize=10.5,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), named, strict=True):
        text.set_fontweight("bold" if name in learned else "normal")

    axes.set_xlim(0, 1.04 * max(float(line[:, 0].max()) for line in (*lines.values(), spot[None])))
    seen = np.concatenate([spot[None], *lines.values()])[:, 1]
    room = 0.06 * max(float(np.ptp(seen)), 1.0)
    # At least six points, so that the numbers beside the lines differ.
    low = max(min(float(seen.min()) - room, 94), -1)
    axes.set_ylim(low, min(max(float(seen.max()) + room, low + 6), 101))
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:.0f}%")
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axes.set_xlabel("mean tokens a question: thinking, trial answers and answer")
    set_title(axes, f"Exact match on {evaluation['held_out_questions']:,} held-out questions")
    axes.grid(axis="y", color=RULE_LINE, lw=0.6, alpha=0.7)
    set_plain(axes)
    if faint:
        figure.supxlabel(
            fill(f"thin and grey: {', '.join(faint)}", 110), x=0.01, ha="left", color=QUIET,
            fontsize=8.5,
        )  # fmt: skip


def _line(axes: Any, line: Floats, style: Style, learned: bool) -> list[Any]:
    width = 2.6 if learned else 1.4
    # Matplotlib's dashes are in widths of the line.
    dashes = (0, tuple(1.5 / width * part for part in style.dash)) if style.dash else "-"
    found: list[Any] = axes.plot(
        *line.T, color=style.colour, lw=width, ls=dashes, marker=style.marker,
        ms=4.5 if learned else 3.2, zorder=5 if learned else 3, solid_joinstyle="round",
    )  # fmt: skip
    return found
