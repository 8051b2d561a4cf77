"""What is logged of a training and what is kept: TensorBoard, the best policy, the snapshots."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure

from rlbudget.agents.actor import actor_of, actor_stop_chances
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.curves import (
    BEST_GAP,
    FRONTIER,
    FULL,
    GAP,
    GIVES_CHARTS,
    NAMES,
    PRICES,
    WORTH,
    Layout,
    describe_run,
    frontier_figure,
    lines,
    write_levels,
)
from rlbudget.agents.dual import Constraint, Measured, focus
from rlbudget.agents.exact import TraceSource
from rlbudget.agents.freeze import BEST
from rlbudget.agents.snapshot import Source, save_best, save_latest, save_run
from rlbudget.agents.validation import Score, Validation
from rlbudget.policy.prices import middle_price

Progress = Callable[[int, int], None]
"""called with environment steps done and in all"""

HELD = "3 what is asked for"
"""of a training that keeps a floor or a budget"""
LAYOUT: Layout = {
    WORTH: {
        "gap closed on the validation questions (0: best constant budget, 1: knows the answers)":
            lines(NAMES["oracle_gap_closed"], BEST_GAP),
    },
    **GIVES_CHARTS,
    "4 At which prices?": {
        f"{what} at each relative price": lines(f"{PRICES}/{what} at .*")
        for what in ("gap closed", "exact match", "tokens a question")
    },
}  # fmt: skip
"""categories, charts and the curves of each, of the page Custom Scalars"""
HELD_CHARTS: Layout = {
    "3 Is what was asked for kept?": {
        f"{what} at the price that keeps it": lines(f"{HELD}/{what}")
        for what in ("exact match", "tokens a question", "token price")
    },
}
"""beside them, of a training that keeps a floor or a budget"""
FIGURES = 4
"""frontier figures in a run, beside the one at the end"""


class Watch(BaseCallback):
    """Calls ``look`` between two updates, every ``every`` of them and at the end of a training."""

    def __init__(self, every: int, total: int, progress: Progress | None) -> None:
        super().__init__()
        self.every, self.total_timesteps, self.progress = every, total, progress
        self.updates = 0
        """updates begun"""

    @abstractmethod
    def look(self, *, last: bool) -> None:
        """Measure the policy."""

    def _on_rollout_start(self) -> None:
        if self.updates % self.every == 0:
            self.look(last=False)
        self.updates += 1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.progress is not None:
            self.progress(min(self.num_timesteps, self.total_timesteps), self.total_timesteps)

    def _on_training_end(self) -> None:
        self.look(last=True)


class Monitor(Watch):
    """Logs and keeps what the policy is worth on the validation questions.

    Logged at each look, a decode stopping where p(stop) > 0.5:

    * exact match, tokens, utility and gap closed: means over the relative prices
      (``curves.NAMES``), and each at each of them (``curves.PRICES``);
    * the gap closed by the policy kept so far;
    * a figure, exact match against tokens.

    With a constraint: the token price, and exact match and tokens at the one that meets it.
    """

    def __init__(
        self,
        run_dir: Path,
        source: Source,
        validation: Validation,
        run: dict[str, Any],
        config: PPOConfig,
        progress: Progress | None,
        state: dict[str, Any] | None = None,
    ) -> None:
        assert config.total_timesteps is not None
        super().__init__(config.evaluate_every, config.total_timesteps, progress)
        self.run_dir = run_dir
        self.source = source
        self.validation = validation
        self.run = run
        self.constraint = config.constraint
        self.state: dict[str, Any] = state or {"update": 0, "best": None, "run": None}
        self.updates = self.state["update"]
        measured = self.total_timesteps // (self.every * config.n_envs * config.n_steps)
        self._draw_every = max(1, measured // FIGURES)

    @property
    def best(self) -> dict[str, Any]:
        """The validation score of the policy kept."""
        result: dict[str, Any] = self.state["run"]["validation"]
        return result

    def _on_training_start(self) -> None:
        layout = LAYOUT if self.constraint is None else {**LAYOUT, **HELD_CHARTS}
        describe_run(self.logger, self.run, layout, (BEST_GAP,))
        table = self.validation.columns.table
        full = {"exact_match": table.final_exact_match.mean(), "tokens": table.full_tokens.mean()}
        levels = {name: float(full[number]) for number, name in FULL.items()}
        write_levels(self.logger, levels, self.total_timesteps)

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        if self.constraint is not None:
            done = self.num_timesteps / self.total_timesteps
            assert isinstance(self.source, TraceSource)
            price = self.state["dual_price"]
            bounds = self.validation.columns.scaling.token_price
            self.source.token_price = focus(price, bounds, min(done, 1.0))

    def look(self, *, last: bool) -> None:
        """Measure, log, keep the best and save what a resumed run needs."""
        self.state["update"] = self.updates
        self._measure(draw=last or self.updates // self.every % self._draw_every == 0)
        if last:
            self.logger.dump(step=self.num_timesteps)
        save_latest(self.run_dir, self.model, self.source, self.state)  # type: ignore[arg-type]

    def _measure(self, *, draw: bool) -> None:
        actor = actor_of(self.model)  # type: ignore[arg-type]
        score = self.validation.measure(partial(actor_stop_chances, actor))
        if self.constraint is not None:
            self._measure_constraint(self.constraint, actor, score)
            return
        # Of equals the later: it has trained longer at the prices that validation does not look at.
        if self.state["best"] is None or score.selection >= self.state["best"]:
            self._keep(actor, score)
        self._log(score)
        if draw:
            figure = frontier_figure(score, "On the validation questions, by relative price")
            self.logger.record(FRONTIER, LoggedFigure(figure, close=True))

    def _measure_constraint(
        self, constraint: Constraint, actor: dict[str, torch.Tensor], score: Score
    ) -> None:
        """Move the dual price; keep the policy that meets the constraint at the least cost."""

        at = partial(self.validation.at, partial(actor_stop_chances, actor))
        bounds = self.validation.columns.scaling.token_price
        dual = self.state.setdefault("dual_price", middle_price(bounds))
        self.state["dual_price"] = constraint.moved(dual, at(dual), bounds)
        price, found = constraint.solved(at, bounds)
        kept = self.state["run"] and self.state["run"]["operating"]
        if not kept or constraint.better(found, Measured(kept["exact_match"], kept["tokens"])):
            operating = {"token_price": price, **asdict(constraint), **asdict(found)}
            self._keep(actor, score, operating=operating)
        self._log(score)
        self.logger.record(f"{HELD}/token price", self.state["dual_price"])
        self.logger.record(f"{HELD}/exact match", found.exact_match)
        self.logger.record(f"{HELD}/tokens a question", found.tokens)

    def _keep(self, actor: dict[str, torch.Tensor], score: Score, **extra: Any) -> None:
        self.state["best"] = score.selection
        self.state["run"] = {
            **self.run,
            **extra,
            "timesteps": int(self.num_timesteps),
            "validation": score.as_dict(),
        }
        normaliser = self.validation.columns.scaling
        save_best(self.run_dir, actor, normaliser.mean, normaliser.std, self.state["run"])

    def sweep_best(self) -> None:
        """At the end: what the policy kept gives at every price, into ``run.json``."""
        kept = load_file(self.run_dir / BEST)
        swept = self.validation.sweep(partial(actor_stop_chances, kept))
        save_run(self.run_dir, {**self.state["run"], "swept": swept})

    def _log(self, score: Score) -> None:
        for number, name in NAMES.items():
            values = [getattr(result, number) for result in score.prices]
            known = [value for value in values if not math.isnan(value)]
            # Without a gap there is no share of it: the curve then stays at 0.
            self.logger.record(name, float(np.mean(known)) if known else 0.0)
            for result, value in zip(score.prices, values, strict=True):
                if not math.isnan(value):
                    what = "gap closed" if name.startswith(GAP) else name.partition("/")[2]
                    at = f"{PRICES}/{what} at {result.relative_price:g}"
                    self.logger.record(at, value)
        best = self.best["mean_oracle_gap_closed"]
        self.logger.record(BEST_GAP, 0.0 if best is None else best)
