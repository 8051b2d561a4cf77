"""From traces of two models to a cascade in a file: train, measure, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.training import recorded_of
from rlbudget.errors import UserError
from rlbudget.evaluate.unseen import Before, fitted_to, folder_texts, split_seed_of, unseen_rows
from rlbudget.evaluate.verdicts import Paired, most_utility, paired
from rlbudget.policy.cascade import Cascade, make_cascade, save_cascade
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.policy.handover import in_large_tokens, served
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay_cascade import replay_cascade
from rlbudget.policy.seen import as_text, marks_of
from rlbudget.traces.pairs import PairSplit, load_pair, split_pair
from rlbudget.traces.store import digest, iter_traces

if TYPE_CHECKING:
    from rlbudget.console import Advance


@dataclass(frozen=True, slots=True)
class CascadeAtPrice:
    """Mean held-out utility at one relative price of the large model."""

    relative_price: float
    utilities: Mapping[str, float]
    """way -> utility: the models alone, then the cascade"""
    best: str
    """the model alone that is best here, in hindsight"""
    ahead: Paired
    """the cascade's utility minus that one's"""
    escalated: float
    """share of the questions that the large model was asked"""


@dataclass(frozen=True, slots=True)
class FittedCascade:
    """What a cascade earns on held-out questions."""

    questions: int
    """held out"""
    prices: tuple[CascadeAtPrice, ...]
    notes: tuple[str, ...]


def fit_cascade(
    small: Path,
    large: Path,
    out: Path,
    *,
    ratio: float,
    large_policy: Path | None = None,
    total_timesteps: int | None = None,
    seed: int = 0,
    split_seed: int = 0,
    progress: Advance | None = None,
) -> FittedCascade:
    """Train on the training questions that both folders hold, choose on the validation ones.

    ``ratio`` is what a token of the small model costs in tokens of the large one; the large model
    is served by ``large_policy``, in full if left out. The split is that of the policy where it was
    trained on these traces; questions it has seen are not measured. Raises ``UserError`` as
    ``load_pair`` and ``train_cascade`` do.
    """
    from rlbudget.agents.cascade import train_cascade  # needs torch and gymnasium

    if out.suffix != ".safetensors":
        raise UserError(f"the cascade is a .safetensors file, not {out.name}")
    policy = None if large_policy is None else load_policy(large_policy)
    fitted: Before = {} if policy is None else {"the large model's policy": fitted_to(policy)}
    texts, pair = folder_texts(small, large), load_pair(small, large, ratio=ratio)
    split_seed = split_seed_of(fitted, pair.question_ids, texts, split_seed)
    split = split_pair(pair, seed=split_seed)
    unseen, notes = unseen_rows(split.held_out.question_ids, texts, fitted)
    split = PairSplit(split.train, split.validation, split.held_out.take(np.flatnonzero(unseen)))
    config = PPOConfig(seed=seed, total_timesteps=total_timesteps)
    trained = train_cascade(
        split.train, split.validation, config, large=policy, progress=progress
    ).cascade
    cascade = make_cascade(
        trained.tensors,
        features=trained.features,
        price_range=trained.price_range,
        ratio=ratio,
        clip=trained.config["clip"],
        trained={
            **trained.config["trained"],
            "traces": {
                "small": digest(small),
                "large": digest(large),
                "split_seed": split_seed,
                "seen": as_text(
                    marks_of([*split.train.question_ids, *split.validation.question_ids], texts)
                ),
            },
            "recorded": {"small": _settings(small), "large": _settings(large)},
        },
    )
    save_cascade(out, cascade)
    prices = tuple(_at_price(relative, cascade, split, policy) for relative in RELATIVE_PRICES)
    return FittedCascade(len(np.unique(split.held_out.question_ids)), prices, tuple(notes))


def _at_price(
    relative_price: float, cascade: Cascade, split: PairSplit, large: Policy | None
) -> CascadeAtPrice:
    """Against the small model in full, and the large one in full and under its policy."""
    pair, price = split.held_out, token_price_of(relative_price, split.train.large)
    asked = served(large, pair.large, price).outcome
    alone = {
        "small": in_large_tokens(served(None, pair.small, price).outcome, pair.ratio),
        "large": served(None, pair.large, price).outcome,
    }
    if large is not None:
        alone["large+policy"] = asked
    done = replay_cascade(cascade, pair, nearest_price(price, cascade.price_range), asked)
    each = {name: utility(outcome, price) for name, outcome in alone.items()}
    own = utility(done.outcome, price)
    best = max(each, key=lambda name: float(each[name].mean()))
    most = most_utility(price, done.outcome, asked, *alone.values())
    return CascadeAtPrice(
        relative_price=relative_price,
        utilities={name: float(u.mean()) for name, u in (each | {"cascade": own}).items()},
        best=best,
        ahead=paired(own - each[best], pair.question_ids, most=most),
        escalated=float(done.escalated.mean()),
    )


def _settings(folder: Path) -> dict[str, Any]:
    return recorded_of(next(iter_traces(folder)))
