"""Several models: fit a chooser that says whose answer to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import Folder, Folders, N, Numbers
from rlbudget.cli.findings.learning import over_the_best
from rlbudget.console import note, plain_table, progress, show, tell
from rlbudget.errors import UserError
from rlbudget.policy.folder import load_policy
from rlbudget.strategies.chooser.fit import fit_chooser


@dataclass(frozen=True)
class Choose:
    """Fit a chooser of whose answer to use among several models; all that are asked are paid."""

    traces: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRACES TRACES ...")
    ]
    """Folders of two or more models' traces of the same questions; the first model answers first,
    where looking at its answer pays."""
    out: Folder
    """Folder of the chooser."""
    ratio: Numbers = ()
    """What a token of a model costs, in tokens of the dearest: above 0, at most 1; once a folder,
    in their order; by default 1 for all."""
    policy: Folders = ()
    """Policy folder that a model is served by; once a folder of traces, in their order; by default
    all decode in full."""
    seed: N = 0
    """Seed of the fit."""
    split_seed: N = 0
    """Seed of the split, where the policies do not fix it."""

    def execute(self) -> None:
        """Fit, print what it is worth."""
        n = len(self.traces)
        if n < 2:
            raise UserError("choose takes two or more folders of traces")
        for name, given in (("--ratio", self.ratio), ("--policy", self.policy)):
            if given and len(given) != n:
                raise UserError(f"{name} is given {len(given)} times for {n} folders of traces")
        with progress("Fitting") as advance:
            done = fit_chooser(
                self.traces,
                self.out,
                ratios=self.ratio or (1.0,) * n,
                policies=[load_policy(one) for one in self.policy] or [None] * n,
                seed=self.seed,
                split_seed=self.split_seed,
                progress=advance,
            )
        tell(f"Utility on {done.questions:,} held-out questions, in tokens of the dearest model")
        names = list(done.prices[0].utilities)
        rows = [
            [
                f"{at.relative_price:g}",
                *(f"{at.utilities[name]:.4f}" for name in names),
                str(at.way),
                str(at.ahead),
            ]
            for at in done.prices
        ]
        show(plain_table(["price", *names, "chooses", "over the best alone"], rows))
        tell(over_the_best("chooser", [at.ahead for at in done.prices], done.questions))
        for line in done.notes:
            note(line)
        note(f"Chooser written to {self.out}")
