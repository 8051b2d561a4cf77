"""What the figures are drawn with: matplotlib, none of whose global settings is touched."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from rlbudget.errors import missing_extra

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
except ImportError as missing:
    raise missing_extra("train", "matplotlib") from missing

_STYLE: dict[Any, Any] = {"font.size": 10.5, "svg.hashsalt": "rlbudget"}
_SETTINGS: dict[str, dict[str, Any]] = {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}
HALO = withStroke(linewidth=3, foreground="white")
"""what keeps a name readable on a line"""


def drawn(
    draw: Callable[[Any], None], *formats: str, size: tuple[float, float]
) -> Mapping[str, bytes]:
    """Format ("png", "svg") -> the file of a figure of ``size`` inches that ``draw`` fills."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        return {name: _saved(figure, name) for name in formats}


def _saved(figure: Figure, name: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=name, **_SETTINGS[name])
    return content.getvalue()
