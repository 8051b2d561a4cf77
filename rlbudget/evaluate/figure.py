"""The frontier figure: exact match against tokens, one line a method, drawn from an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.evaluate.canvas import BLUE, INK, RED, RULE_LINE, drawn, set_plain, set_title
from rlbudget.files import write_bytes

LEARNED = (BLUE, "#1a7f37", "#8250df", "#0b7285")
RULES = ("#9a6700", "#bc4c00", "#bf3989", RED, "#57606a", "#7c5a2b")
COLOURS = {"fixed": "#57606a", "random": "#afb8c1", "oracle": INK}

CLEAR = 4.0
"""Pixels between a name and the next line that are enough."""


def draw_frontier(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Write ``frontier.png`` and ``frontier.svg`` of an evaluation into ``folder``.

    Needs matplotlib (``UserError`` without it); touches no global setting of it.
    """

    def draw(figure: Any, halo: Any) -> None:
        _draw(figure.add_subplot(), evaluation, halo)

    for name, content in drawn(draw, "png", "svg", size=(8, 4.9)).items():
        write_bytes(folder / f"frontier.{name}", content)


def _draw(axes: Any, evaluation: Mapping[str, Any], halo: Any) -> None:
    full = evaluation["full"]
    lines: dict[str, Floats] = {}
    styles: dict[str, dict[str, Any]] = {}
    learned, rules = iter(LEARNED * 9), iter(RULES * 9)
    for entry in evaluation["frontier"]:
        points = entry["points"]
        name = entry["method"]
        lines[name] = np.array([(p["tokens"], 100 * p["exact_match"]) for p in points])
        colour = COLOURS.get(name) or next(learned if entry["kind"] == "learned" else rules)
        styles[name] = {
            "learned": {"color": colour, "lw": 2.6, "zorder": 5, "marker": "o", "ms": 4},
            "rule": {"color": colour, "lw": 1.0, "zorder": 3, "marker": "o", "ms": 1.6},
            "bound": {"color": colour, "lw": 1.3, "zorder": 2, "ls": (0, (5, 3))},
        }[entry["kind"]]
    for name, line in lines.items():
        axes.plot(*line.T, solid_joinstyle="round", **styles[name])
    spot = np.array([full["tokens"]["total"], 100 * full["exact_match"]])
    axes.axhline(spot[1], color=RULE_LINE, lw=1, zorder=1)
    axes.plot(*spot, "D", color=INK, ms=7, mec="white", mew=1.2, zorder=6)

    axes.set_xlim(0, 1.04 * max(float(line[:, 0].max()) for line in (*lines.values(), spot[None])))
    seen = np.concatenate([spot[None], *lines.values()])[:, 1]
    room = 0.06 * max(float(np.ptp(seen)), 1.0)
    axes.set_ylim(max(seen.min() - room, -1), min(seen.max() + room, 101))
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:.0f}%")
    axes.set_xlabel("mean tokens a question: thinking, trial answers and answer")
    set_title(axes, f"Exact match on {evaluation['held_out_questions']:,} held-out questions")
    axes.grid(axis="y", color=RULE_LINE, lw=0.6, alpha=0.7)
    set_plain(axes)

    lines["full decode"], styles["full decode"] = spot[None], {"color": INK, "lw": 2.0}
    _label(axes, lines, styles, halo)


def _label(axes: Any, lines: Mapping[str, Floats], styles: Mapping[str, Any], halo: Any) -> None:
    """Write each name beside its line where there is most room, the boldest lines first."""
    figure = axes.figure
    figure.draw_without_rendering()
    dense = {name: _dense(axes.transData.transform(line)) for name, line in lines.items()}
    renderer = figure.canvas.get_renderer()
    bounds = axes.get_window_extent(renderer)
    taken: list[Floats] = []
    for name in sorted(lines, key=lambda n: (n != "full decode", -styles[n]["lw"])):
        text = axes.text(
            0, 0, name, color=styles[name]["color"], ha="center", va="center", zorder=8,
            fontsize=11 if styles[name]["lw"] >= 2 else 9.5,
            fontweight="bold" if styles[name]["lw"] >= 2 else "normal",
            path_effects=[halo],
        )  # fmt: skip
        box = text.get_window_extent(renderer)
        half = np.array([box.width, box.height]) / 2
        others = [other for key, other in dense.items() if key != name]
        best = _roomiest(dense[name], half, np.concatenate(others), taken, bounds)
        text.set_position(axes.transData.inverted().transform(best))
        across = np.linspace(-half[0], half[0], 9)
        taken.append(best + np.stack([across, np.zeros(9)], axis=1))


def _dense(line: Floats) -> Floats:
    """A polyline in pixels with a point every few of them, (k, 2)."""
    if len(line) < 2:
        return line
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.linspace(0, along[-1], max(int(along[-1] / 4), 2))
    return np.stack([np.interp(at, along, line[:, 0]), np.interp(at, along, line[:, 1])], axis=1)


def _roomiest(
    line: Floats, half: Floats, others: Floats, taken: list[Floats], bounds: Any
) -> Floats:
    """The centre for a box of half size ``half`` beside the line and inside the axes: it touches
    nothing, the line is far from the others there, and little else is near."""  # fmt: skip
    gap = half + 5
    offsets: Sequence[tuple[float, float]] = (
        (0, gap[1]), (0, -gap[1]), (gap[0], 0), (-gap[0], 0),
        (gap[0], gap[1]), (-gap[0], gap[1]), (gap[0], -gap[1]), (-gap[0], -gap[1]),
    )  # fmt: skip
    anchors = line[:: max(len(line) // 60, 1)]
    alone = _distances(anchors, others, np.zeros(2)).min(axis=1, initial=np.inf)
    centres = (anchors[:, None, :] + np.array(offsets)).reshape(-1, 2)
    alone = np.repeat(alone, len(offsets))
    low, high = centres - half, centres + half
    inside = (low >= (bounds.x0, bounds.y0)).all(axis=1) & (high <= (bounds.x1, bounds.y1)).all(
        axis=1
    )
    distance = _distances(centres, np.concatenate([line, others, *taken]), half)
    clear = np.minimum(distance.min(axis=1) / CLEAR, 1)
    crowd = np.exp(-distance / 12).sum(axis=1)
    own = _distances(centres, line, half).min(axis=1)
    nearest_other = _distances(centres, others, half).min(axis=1, initial=np.inf)
    plain = np.minimum(nearest_other / (2 * own + 1), 1)
    apart = np.minimum(alone / (2 * gap[1]), 1)
    score = 2 * clear + plain + apart - 0.002 * crowd - 1e3 * ~inside
    best: Floats = centres[int(score.argmax())]
    return best


def _distances(centres: Floats, points: Floats, half: Floats) -> Floats:
    """(centres, points) from boxes of half size ``half`` to points."""
    outside = np.maximum(np.abs(points[None] - centres[:, None]) - half, 0)
    distance: Floats = np.hypot(outside[..., 0], outside[..., 1])
    return distance
