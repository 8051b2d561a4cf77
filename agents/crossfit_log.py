"""TensorBoard's view of a cross-fitted ensemble in training.

At each look, of what the members give on the fold that each left out: ``eval/...``, the means over
all members under the names of a single policy's training; ``cold/...`` and ``warm/...``, means of
each kind; ``member/...``, the gap that each closes. At the end ``out_of_fold/...``; the curves
``by_price/...``, whose step is the relative price in thousandths; the same as a table under Text;
and a page of charts under Custom Scalars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat

from rlbudget.agents.monitor import frontier_figure
from rlbudget.agents.validation import Score

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from rlbudget.agents.members import Member

LAYOUT = {
    "Is it worth it?": {
        "gap closed by relative price (in thousandths), out of fold": [
            "Multiline", ["by_price/policy", "by_price/best_rule", "by_price/never_stopping"],
        ],
        "gap closed while training, mean of each kind": [
            "Multiline", ["cold/oracle_gap_closed", "warm/oracle_gap_closed"],
        ],
    },
    "What it gives up and saves": {
        "exact match": ["Multiline", ["eval/exact_match"]],
        "tokens a question": ["Multiline", ["eval/tokens"]],
        "utility": ["Multiline", ["eval/utility", "cold/utility", "warm/utility"]],
    },
    "Members": {"gap closed on the fold left out": ["Multiline", ["member/.*"]]},
}  # fmt: skip
"""categories, charts and the curves of each, of the page Custom Scalars"""
_MEANS = ("exact_match", "tokens", "utility", "oracle_gap_closed")


class EnsembleLog:
    """Writes to a logger what the module says."""

    def __init__(self, logger: Logger, run: Mapping[str, Any], folds: int) -> None:
        self._logger, self._folds = logger, folds
        self._best = -np.inf
        shown = {
            name: value if isinstance(value, int | float | str) else str(value)
            for name, value in run["config"].items()
        }
        metrics = {f"out_of_fold/{name}": 0.0 for name in ("oracle_gap_closed", "utility")}
        logger.record("hparams", HParam(shown, metrics))
        for writer in self._writers():
            writer.add_custom_scalars(LAYOUT)
            rows = "".join(f"| {name} | {value} |\n" for name, value in shown.items())
            writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")

    def _writers(self) -> list[SummaryWriter]:
        formats = self._logger.output_formats
        return [one.writer for one in formats if isinstance(one, TensorBoardOutputFormat)]

    def look(self, done: int, members: Sequence[Member]) -> None:
        """Between two updates."""
        for kind in ("cold", "warm"):
            scores = [one.score for one in members if one.warm == (kind == "warm")]
            for name in ("oracle_gap_closed", "utility"):
                self._mean(f"{kind}/{name}", [getattr(one, f"mean_{name}") for one in scores])
        for one in members:
            name = f"member/{'warm' if one.warm else 'cold'}_{one.fold + 1}_of_{self._folds}"
            self._mean(name, [one.score.mean_oracle_gap_closed])
        for name in _MEANS:
            each = [[getattr(row, name) for row in one.score.prices] for one in members]
            found = self._mean(f"eval/{name}", np.ravel(each).tolist())
        # Without a gap there is no share of it: the curve then stays at 0.
        self._best = max(self._best, 0.0 if found is None else found)
        self._logger.record("eval/best_oracle_gap_closed", self._best)
        self._logger.dump(step=done)

    def _mean(self, name: str, values: Sequence[float]) -> float | None:
        if np.isnan(values).all():
            return None
        mean = float(np.nanmean(values))
        self._logger.record(name, mean)
        return mean

    def end(self, found: Mapping[str, Any], score: Score, step: int) -> None:
        """At the end: the estimates of ``agents.out_of_fold`` and their score."""
        self._logger.record("out_of_fold/oracle_gap_closed", score.mean_oracle_gap_closed)
        self._logger.record("out_of_fold/utility", score.mean_utility)
        rule = found["rule"]["oracle_gap_closed"]
        self._logger.record("out_of_fold/best_rule", 0.0 if rule is None else rule)
        curves = {"oracle_gap_closed": "policy", "rule_oracle_gap_closed": "best_rule",
                  "never": "never_stopping"}  # fmt: skip
        for row in found["prices"]:
            for name, curve in curves.items():
                if row[name] is not None:
                    self._logger.record(f"out_of_fold/{name}@{row['relative_price']:g}", row[name])
                    for writer in self._writers():
                        place = round(1000 * row["relative_price"])
                        writer.add_scalar(f"by_price/{curve}", row[name], place)
        for writer in self._writers():
            writer.add_text("out_of_fold", table_of_prices(found), step)
        frontier = LoggedFigure(frontier_figure(score), close=True)
        self._logger.record("out_of_fold/frontier", frontier)
        self._logger.dump(step=step)
        self._logger.close()


def table_of_prices(found: Mapping[str, Any]) -> str:
    """The estimates at each price, and the savings, as Markdown."""
    lines = [
        f"Questions: {found['questions']}. Intervals of {found['level']:.0%}.\n",
        "| relative price | exact match | tokens | gap closed | interval | best rule | its gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["prices"]:
        low, high = (_shown(value) for value in row["oracle_gap_closed_ci90"])
        lines.append(
            f"| {row['relative_price']:g} | {row['exact_match']:.3f} | {row['tokens']:.1f}"
            f" | {_shown(row['oracle_gap_closed'])} | {low} to {high} | {row['rule']}"
            f" | {_shown(row['rule_oracle_gap_closed'])} |"
        )
    lines += ["", "| may lose | saves | loses | the best rule saves |", "|---|---|---|---|"]
    lines += [
        f"| {100 * row['max_em_loss']:g} points | {row['savings']:.1%}"
        f" | {100 * row['em_loss']:.2f} points | {row['rule_savings']:.1%} |"
        for row in found["savings"]
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "none" if value is None or np.isnan(value) else f"{value:.3f}"
