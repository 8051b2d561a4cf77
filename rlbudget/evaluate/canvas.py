"""What the figures share: colours, axes, files. No global setting of matplotlib is touched."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from rlbudget.errors import missing_extra

INK, QUIET, RULE_LINE, BLUE, RED = "#24292f", "#6e7781", "#d8dee4", "#0969da", "#a40e26"
_STYLE: dict[Any, Any] = {"font.size": 10.5, "svg.hashsalt": "rlbudget"}
_SETTINGS: dict[str, dict[str, Any]] = {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}


def drawn(
    draw: Callable[[Any, Any], None], *formats: str, size: tuple[float, float]
) -> Mapping[str, bytes]:
    """Format ("png", "svg") -> the file of a figure of ``size`` inches.

    ``draw`` fills it; it also gets a halo, the path effect that keeps a name readable on a line.
    Raises ``UserError`` where matplotlib is not installed.
    """
    try:
        from matplotlib import figure, patheffects, rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as missing:
        raise missing_extra("train", "matplotlib") from missing
    with rc_context(_STYLE):
        drawing = figure.Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        draw(drawing, patheffects.withStroke(linewidth=3, foreground="white"))
        files = {name: io.BytesIO() for name in formats}
        for name, file in files.items():
            drawing.savefig(file, format=name, **_SETTINGS[name])
        return {name: file.getvalue() for name, file in files.items()}


def set_plain(axes: Any) -> None:
    """No frame but the line below, no ticks, quiet numbers."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE_LINE)


def set_title(axes: Any, title: str) -> None:
    """Bold, on the left."""
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=14)
