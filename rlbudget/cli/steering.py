"""What is fitted to stand over policies: an impact model, a blend, a correction of exits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import (
    File,
    N,
    Numbers,
    OptionalFolder,
    OptionalNumber,
    OptionalPrice,
    OptionalShare,
    Share,
    ThePolicy,
    TheTraces,
)
from rlbudget.console import note, plain_table, progress, show, tell
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy, load_policies, load_policy
from rlbudget.strategies.correction.correct import Aim
from rlbudget.strategies.correction.file import check_out, save_correction
from rlbudget.strategies.correction.fit import MOST_EXTRA, Fitted, fit_correction
from rlbudget.strategies.correction.fit_second import fit_second
from rlbudget.strategies.fit_guard import fit_guard
from rlbudget.strategies.fit_prediction import fit_prediction


@dataclass(frozen=True)
class Impact:
    """Fit the risk that a stop loses the answer, to guard a policy by."""

    policy: ThePolicy
    """Policy folder; the risk is seen in its observation."""
    traces: TheTraces
    """Folder of the traces, split as the policy was trained."""
    out: File
    """File of the impact model (.safetensors); the reliability diagram goes beside it (.svg)."""
    max_risk: Share = 0.01
    """Share of stops that may lose an answer, from 0 to 1, for what is printed and drawn."""
    seed: N = 0
    """Seed of the fit."""

    def execute(self) -> None:
        """Fit, print how good it is."""
        with progress("Fitting") as advance:
            done = fit_guard(
                self.policy, self.traces, self.out, max_risk=self.max_risk, seed=self.seed,
                progress=advance,
            )  # fmt: skip
        fitted, calibrated, held_out = done.questions
        found = done.reliability
        tell(
            f"Fitted on {fitted:,} questions, calibrated on {calibrated:,}, measured on"
            f" {held_out:,} held-out ones."
        )
        tell(
            f"ECE {found.ece:.4f}, Brier {found.brier:.4f}"
            f" ({done.base_brier:.4f} for always saying the mean)."
        )
        allowed = done.allowed
        tell(
            f"A risk of at most {allowed.max_risk:g} is said at {allowed.share:.1%} of the"
            f" checkpoints; stops there would lose {allowed.lost:.2%}.\n"
        )
        rows = [
            [
                f"{at.relative_price:g}",
                f"{100 * at.without.em_lost:.2f}",
                f"{at.without.savings:.1%}",
                _points(at.guarded.em_lost, at.guarded.em_lost_ci95),
                f"{at.guarded.savings:.1%}",
                f"{at.guarded.harm / at.guarded.stopped if at.guarded.stopped else 0:.2%}",
            ]
            for at in done.prices
        ]
        head = ["price", "EM lost", "saved", "EM lost, guarded", "saved", "stops that lose"]
        show(plain_table(head, rows))
        for line in done.notes:
            note(line)
        note(f"Impact model written to {self.out}, diagram to {self.out.with_suffix('.svg')}")


@dataclass(frozen=True)
class Predict:
    """Fit how likely the answer of a stop is right, which a steered price goes by."""

    policy: ThePolicy
    """Policy folder; the chance is seen in its observation."""
    traces: TheTraces
    """Folder of the traces, split as the policy was trained."""
    out: File
    """File of the model (.safetensors), for [price] predictor in a plan."""
    seed: N = 0
    """Seed of the fit."""

    def execute(self) -> None:
        """Fit, print how good it is."""
        done = fit_prediction(self.policy, self.traces, self.out, seed=self.seed)
        fitted, calibrated, held_out = done.questions
        tell(f"Fitted on {fitted:,} questions, calibrated on {calibrated:,}.")
        tell(
            f"On {held_out:,} held-out ones stops are predicted to give an exact match of"
            f" {done.predicted:.3f} and give {done.exact_match:.3f}; ECE"
            f" {done.reliability.ece:.4f}."
        )
        note(f"Model written to {self.out}")


def _points(mean: float, ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{100 * mean:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


@dataclass(frozen=True)
class Blend:
    """Fit how much each policy of an ensemble counts, by what stopping earns on traces."""

    folders: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY ... TRACES")
    ]
    """Policy folders, and last the folder of the traces, split as the policies were trained."""
    out: File
    """File of the blend (JSON), for --combine."""
    price_factor: Numbers = ()
    """Times the token price, one a policy; several over one policy blend its versions."""

    def execute(self) -> None:
        """Fit, print what it is worth."""
        from rlbudget.strategies.fit_blend import fit_blend_file  # needs sklearn and gymnasium

        *policies, traces = self.folders or [Path()]
        if not policies:
            raise UserError("blend takes policy folders, and last the folder of the traces")
        members = load_policies(policies)
        with progress("Fitting") as advance:
            done = fit_blend_file(
                members, traces, self.out, price_factors=self.price_factor, progress=advance
            )
        tell(f"Utility on {done.questions:,} held-out questions")
        rows = [
            [way, *(f"{value:.4f}" for value in values)] for way, values in done.utilities.items()
        ]
        show(plain_table(["relative price", *(f"{p:g}" for p in done.prices)], rows))
        tell(f"Blend over the mean of chances: {done.over_mean}.")
        for line in done.notes:
            note(line)
        note(f"Blend written to {self.out}")


@dataclass(frozen=True)
class Correct:
    """Learn which exits of a policy to take back and think on, or to hand to a second model."""

    policy: ThePolicy
    """Policy folder."""
    traces: TheTraces
    """Folder of traces; with --store-text their thinking is checked as well."""
    out: File
    """File of the correction (.safetensors); with --second-policy a folder."""
    token_price: OptionalPrice = None
    """Reward lost per token; by default the certified one, else the middle of the range."""
    second: OptionalFolder = None
    """Folder of a second model's traces of the same questions: doubted exits are handed to it."""
    token_ratio: OptionalNumber = None
    """What a token of the second model costs, in tokens of the first: above 0."""
    second_policy: OptionalFolder = None
    """Policy folder that the second model is served by; by default it decodes in full."""
    most_extra: OptionalShare = None
    """Extra tokens at most, as a share of those that the policy's stops save; by default 0.1, and
    without a bound for a second model."""
    aim: Aim = "utility"
    """utility: what earns most; answers: what recovers most and earns at least half as much."""
    seed: N = 0
    """Seed of the fitting."""

    def execute(self) -> None:
        """Run it."""
        policy = load_policy(self.policy)
        price = policy.default_price if self.token_price is None else self.token_price
        if self.second is None:
            if self.token_ratio is not None or self.second_policy is not None:
                raise UserError("--token-ratio and --second-policy need --second TRACES")
            most = MOST_EXTRA if self.most_extra is None else self.most_extra
            fitted = fit_correction(
                policy, self.traces, token_price=price, most_extra=most, aim=self.aim,
                seed=self.seed,
            )  # fmt: skip
            save_correction(self.out, fitted.correction)
        else:
            fitted = self._by_second(policy, self.second, price)
        for line in fitted.lines():
            tell(line)
        note(f"Correction written to {self.out}")

    def _by_second(self, policy: Policy, second: Path, price: float) -> Fitted:
        if self.token_ratio is None:
            raise UserError(
                "--second needs --token-ratio: what a token of the second model costs, in tokens of"
                " the first"
            )
        other = None if self.second_policy is None else load_policy(self.second_policy)
        check_out(self.out, other)
        fitted = fit_second(
            policy, self.traces, second, token_ratio=self.token_ratio, token_price=price,
            second_policy=other, most_extra=self.most_extra, aim=self.aim, seed=self.seed,
        )  # fmt: skip
        save_correction(self.out, fitted.correction, other)
        return fitted
