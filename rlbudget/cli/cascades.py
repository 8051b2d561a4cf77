"""Two models: train a cascade."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import File, N, OptionalFolder, OptionalN, Share
from rlbudget.cli.findings.learning import over_the_best
from rlbudget.console import note, plain_table, progress, show, tell
from rlbudget.strategies.fit_cascade import fit_cascade


@dataclass(frozen=True)
class Cascade:
    """Train a cascade: a small model that stops, goes on, or hands over to a large one."""

    small_traces: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SMALL")]]
    """Folder of the small model's traces."""
    large_traces: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="LARGE")]]
    """Folder of the large model's traces of the same questions."""
    ratio: Share
    """What a token of the small model costs, in tokens of the large one: above 0, at most 1."""
    out: File
    """File of the cascade (.safetensors)."""
    large_policy: OptionalFolder = None
    """Policy folder that the large model is served by; by default it decodes in full."""
    total_timesteps: OptionalN = None
    """Environment steps; by default twice those of a policy."""
    seed: N = 0
    """Seed of the training."""
    split_seed: N = 0
    """Seed of the split, where the large model's policy does not fix it."""

    def execute(self) -> None:
        """Train, print what it is worth."""
        with progress("Training") as advance:
            done = fit_cascade(
                self.small_traces,
                self.large_traces,
                self.out,
                ratio=self.ratio,
                large_policy=self.large_policy,
                total_timesteps=self.total_timesteps,
                seed=self.seed,
                split_seed=self.split_seed,
                progress=advance,
            )
        tell(f"Utility on {done.questions:,} held-out questions, in tokens of the large model")
        ways = list(done.prices[0].utilities)
        rows = [
            [
                f"{at.relative_price:g}",
                *(f"{at.utilities[way]:.4f}" for way in ways),
                str(at.ahead),
                f"{at.escalated:.0%}",
            ]
            for at in done.prices
        ]
        show(plain_table(["price", *ways, "over the best alone", "asked"], rows))
        tell(over_the_best("cascade", [at.ahead for at in done.prices], done.questions))
        for line in done.notes:
            note(line)
        note(f"Cascade written to {self.out}")
