"""The reliability diagram: how often an answer is lost against its predicted risk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.evaluate.canvas import BLUE, INK, QUIET, RED, RULE_LINE, drawn, set_plain, set_title
from rlbudget.files import write_bytes

Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Allowed:
    """The checkpoints where a guard lets a policy stop."""

    max_risk: float
    share: float
    """of all checkpoints"""
    lost: float
    """share of them where a stop loses an answer"""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well predicted risks are calibrated."""

    predicted: Floats
    """(bins,) mean risk of each bin"""
    observed: Floats
    """(bins,) share that was lost"""
    count: Ints
    """(bins,) checkpoints"""
    brier: float
    """mean squared difference between risk and outcome"""
    ece: float
    """expected calibration error: mean difference of the two columns, weighted by the counts"""


def reliability(risk: Floats, lost: npt.ArrayLike, *, bins: int = 15) -> Reliability:
    """Compare risks with outcomes in ``bins`` bins of equal width; empty ones are left out.

    ``risk`` (m,) in [0, 1], ``lost`` (m,) 0 or 1.
    """
    outcome = np.asarray(lost, dtype=np.float64)
    place = np.minimum((risk * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    full = count > 0
    predicted = np.bincount(place, risk, bins)[full] / count[full]
    observed = np.bincount(place, outcome, bins)[full] / count[full]
    return Reliability(
        predicted=predicted,
        observed=observed,
        count=count[full],
        brier=float(np.mean((risk - outcome) ** 2)),
        ece=float(np.average(np.abs(predicted - observed), weights=count[full])),
    )


def draw_reliability(found: Reliability, path: Path, *, guard: Allowed | None = None) -> None:
    """Write the diagram as SVG; ``guard`` marks a guard's threshold.

    Above: the share lost in each bin with its 95% interval (Wilson), checkpoints taken as
    independent. Below: how many checkpoints a bin holds, on a square-root scale. Needs matplotlib
    (``UserError`` without it); touches no global setting of it.
    """

    def draw(figure: Any, _: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        _curve(above, found, guard)
        _counts(below, found)

    write_bytes(path, drawn(draw, "svg", size=(5.4, 6.3))["svg"])


def _curve(axes: Any, found: Reliability, guard: Allowed | None) -> None:
    low, high = _wilson(found)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=(0, (5, 3)), zorder=1)
    axes.vlines(found.predicted, low, high, color=BLUE, lw=5, alpha=0.18, zorder=2)
    axes.plot(found.predicted, found.observed, "-o", color=BLUE, lw=2.2, ms=6, mec="white",
              mew=1, zorder=3, clip_on=False)  # fmt: skip
    set_title(axes, "Is the predicted risk calibrated?")
    axes.text(
        0.03, 0.985, f"{int(found.count.sum()):,} held-out checkpoints\n"
        f"calibration error {found.ece:.3f}\nBrier score {found.brier:.3f}",
        transform=axes.transAxes, color=INK, va="top", linespacing=1.5, zorder=4,
    )  # fmt: skip
    if guard is not None:
        axes.axvspan(0, guard.max_risk, color=RED, alpha=0.25, lw=0, zorder=0)
        axes.text(
            0.985, 0.03, f"guard at {guard.max_risk:.3g}: {guard.share:.0%} of the checkpoints"
            f" pass,\nstops there would lose {guard.lost:.1%}",
            color=RED, fontsize=9.5, ha="right", va="bottom", linespacing=1.4,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="answers lost")
    axes.yaxis.set_major_formatter(_percent)
    axes.tick_params(labelbottom=False)
    set_plain(axes)
    axes.grid(axis="y", color=RULE_LINE, lw=0.6, alpha=0.7)


def _counts(axes: Any, found: Reliability) -> None:
    tall = np.sqrt(found.count)
    axes.bar(found.predicted, tall, width=0.04, color=BLUE, alpha=0.75)
    for x, y, count in zip(found.predicted, tall, found.count, strict=True):
        axes.text(x, y + 0.03 * tall.max(), _short(int(count)), color=QUIET, fontsize=7.5,
                  ha="center", va="bottom")  # fmt: skip
    axes.set(xlabel="risk that a stop here loses the answer", yticks=[])
    axes.set_ylabel("checkpoints", fontsize=9)
    axes.set_xlim(-0.015, 1.0)
    axes.set_ylim(0, 1.2 * tall.max())
    axes.xaxis.set_major_formatter(_percent)
    set_plain(axes)


def _short(count: int) -> str:
    return f"{count / 1000:.1f}k" if count >= 1000 else str(count)


def _percent(value: float, place: int) -> str:
    return f"{100 * value:.0f}%"


def _wilson(found: Reliability) -> tuple[Any, Any]:
    n, p = found.count.astype(np.float64), found.observed
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)
