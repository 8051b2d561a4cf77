"""Correction of early exits: fit, measure, keep."""

from __future__ import annotations

from dataclasses import dataclass

from rlbudget.cli.arguments import File, N, OptionalPrice, Share, ThePolicy, TheTraces
from rlbudget.console import note, tell
from rlbudget.policy.folder import load_policy
from rlbudget.strategies.correction.correct import Aim, save_correction
from rlbudget.strategies.correction.fit import fit_correction


@dataclass(frozen=True)
class Correct:
    """Learn which exits of a policy to take back and think on; measure it on held-out questions."""

    policy: ThePolicy
    """Policy folder."""
    traces: TheTraces
    """Folder of traces; with --store-text their thinking is checked as well."""
    out: File
    """File of the correction (.safetensors), for decode --correct."""
    token_price: OptionalPrice = None
    """Reward lost per token; by default the certified one, else the middle of the range."""
    most_extra: Share = 0.1
    """Extra tokens at most, as a share of those that the policy's stops save."""
    aim: Aim = "utility"
    """utility: what earns most; answers: what recovers most and earns at least half as much."""
    seed: N = 0
    """Seed of the fitting."""

    def execute(self) -> None:
        """Run it."""
        policy = load_policy(self.policy)
        price = policy.default_price if self.token_price is None else self.token_price
        fitted = fit_correction(
            policy,
            self.traces,
            token_price=price,
            most_extra=self.most_extra,
            aim=self.aim,
            seed=self.seed,
        )
        save_correction(self.out, fitted.correction)
        for line in fitted.lines():
            tell(line)
        note(f"Correction written to {self.out}")
