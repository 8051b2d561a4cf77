"""Two models: train a cascade, answer through one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import File, N, OptionalFolder, OptionalN, Share
from rlbudget.cli.findings.decodes import ended
from rlbudget.console import note, plain_table, progress, show, tell
from rlbudget.decoding.cascade import CascadeDecoded, decode_cascade
from rlbudget.models import load_model
from rlbudget.policy.cascade import load_cascade
from rlbudget.policy.folder import load_policy
from rlbudget.policy.prices import middle_price
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
        told = [at.ahead.verdict for at in done.prices]
        tell(
            f"Of {len(rows)} prices the cascade is better than the best model alone at"
            f" {told.count('better')}, worse at {told.count('worse')};"
            f" {done.questions:,} questions cannot tell at {told.count('cannot tell')}."
        )
        for line in done.notes:
            note(line)
        note(f"Cascade written to {self.out}")


def answer_through_cascade(
    question: str,
    *,
    cascade: Path,
    model: str,
    large_model: str,
    large_policy: Path | None,
    profile: str | None,
    token_price: float | None,
    seed: int,
    temperature: float | None,
    max_tokens: int | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Answer a question of ``rlbudget decode`` by two models, print answer and ledger."""
    loaded = load_cascade(cascade)
    policy = None if large_policy is None else load_policy(large_policy)
    small = load_model(model, profile=profile, device=device, dtype=dtype)
    same = large_model == model and profile is None
    decoded = decode_cascade(
        small,
        small if same else load_model(large_model, device=device, dtype=dtype),
        question,
        loaded,
        token_price=middle_price(loaded.price_range) if token_price is None else token_price,
        large_policy=policy,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
    )
    tell(decoded.text)
    tell(f"\nAnswer: {decoded.answer}")
    tell(_ledger(decoded))
    if decoded.message and decoded.reason not in ("cascade_failed", "large_failed"):
        note(f"rlbudget: {decoded.message}")


def _ledger(decoded: CascadeDecoded) -> str:
    """What was paid, in tokens of the large model, and where the small one was left."""
    own = f"{decoded.small_thinking_tokens} thinking"
    if decoded.large is None:
        own += f" + {decoded.small_answer_tokens} answer"
    parts = [f"{decoded.ratio:g} x ({own}) of the small model"]
    if (large := decoded.large) is not None:
        parts.append(
            f"{large.thinking_tokens} thinking + {large.probe_tokens} probe"
            f" + {large.answer_tokens} answer of the large one"
        )
    said = [f"Tokens: {decoded.total_tokens:g} = {' + '.join(parts)}.", _left(decoded)]
    if large is not None:
        own = ended(large.reason, large.thinking_tokens, large.message)
        said.append(f"The large model: {own[0].lower()}{own[1:]}")
    return " ".join(said)


def _left(decoded: CascadeDecoded) -> str:
    """Why the small model was left."""
    at = decoded.small_thinking_tokens
    match decoded.reason:
        case "stop":
            return f"The small model was stopped by the cascade at token {at}."
        case "escalate":
            return f"The small model handed over at token {at}."
        case "natural":
            return f"The small model ended by itself after {at} tokens of thinking."
        case "max_tokens":
            return f"The small model was cut at the cap of {at} tokens."
        case "cascade_failed" | "large_failed":
            message = decoded.message or decoded.reason
            return f"{message[0].upper()}{message[1:]}; the small model answered."
