"""Every knob of the training, with its default."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rlbudget.agents.dual import Constraint
from rlbudget.errors import UserError
from rlbudget.files import json_ready
from rlbudget.policy.observation import PRESETS, Preset
from rlbudget.policy.prices import check_price_range
from rlbudget.traces.table import TraceTable

RELATIVE_PRICE_RANGE = (0.01, 1.0)
CONSTRAINED_PRICE_RANGE = (0.001, 64.0)
"""Where the price that meets a constraint is looked for: where stopping early makes a model better,
that is far above any price one would pay."""
MOST_STEPS = 500_000
QUESTIONS_FOR_MOST = 1200
MEMBERS = 5
"""of each kind in a cross-fitted ensemble"""
MEMBER_WIDTH = 16
"""hidden units of a member on up to some 350 questions; twice as many from there, four times as
many from some 700 on"""
MEMBER_STEPS = 200_000
QUESTIONS_FOR_MEMBER = 250
"""each member takes so many steps on up to so many questions, however few they are: fewer leave it
where it began. On more their root is counted"""


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO on recorded traces. The defaults take about ten seconds on one core."""

    preset: Preset = "free"
    """observation: free costs no tokens, probe charges a trial answer at every checkpoint, turns
    one at each turn of thought"""
    advantages: Literal["exact", "sampled"] = "exact"
    """exact: every checkpoint with the advantage the record implies; sampled: plain PPO"""
    token_price: tuple[float, float] | None = None
    """lowest and highest price (reward per token) to train for; by default the relative prices
    0.01 to 1, that is, divided by the mean tokens of the training traces' full decodes; 0.001 to
    64 where a constraint looks for its price"""
    em_floor: float | None = None
    """instead of serving a price: least exact match, for which training looks for the price that
    spends the fewest tokens"""
    token_budget: float | None = None
    """instead of serving a price: most tokens a question, all counted"""
    features: tuple[str, ...] | None = None
    """the observation (``rlbudget.policy.observation``); by default all features of the preset"""
    members: int = 1
    """1: one policy, chosen on validation questions; K: a cross-fitted ensemble of K members from a
    cold start and K from clones of the best rules (``rlbudget.agents.crossfit``)"""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the actor's tanh layers; the critic's too where advantages are sampled. Exact ones
    need no critic, and it is linear"""
    total_timesteps: int | None = None
    """checkpoints (sampled: environment steps) in all; by default 500,000, below 1,200 training
    questions in proportion to the root of their number (100,000 on 48), as more would overfit. Of
    an ensemble those of each member, by default 200,000 on up to 250 questions"""
    seed: int = 0
    """of everything that is drawn; the same seed gives the same policy"""
    n_envs: int = 1024
    """with ``n_steps``: an update takes their product of checkpoints; sampled: replays at once"""
    n_steps: int = 8
    """sampled: steps of each replay between two updates"""
    batch_size: int = 4096
    """checkpoints in a minibatch"""
    n_epochs: int = 3
    """passes over the checkpoints of an update"""
    learning_rate: float = 2e-3
    """at the start; it falls linearly to 0"""
    clip_range: float = 0.2
    """how far an update may move the probability of an action, as a ratio"""
    entropy_bonus: float = 0.0
    """reward for undecidedness, per checkpoint"""
    value_weight: float = 0.5
    """weight of the critic's loss"""
    weight_decay: float = 0.01
    """AdamW's, per unit of learning rate"""
    max_grad_norm: float = 0.5
    """longest gradient"""
    initial_stop_probability: float = 0.05
    """of a fresh policy: a reluctant one reaches the late checkpoints"""
    exploration: float = 0.1
    """with exact advantages: least probability of either action, see ``rlbudget.agents.exact``"""
    input_noise: float = 0.0
    """with exact advantages: standard deviation of noise on the features, in theirs"""
    evaluate_every: int = 4
    """updates between two validations"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, one clear line each."""
        least = {"total_timesteps": 1, "n_envs": 1, "n_steps": 1, "batch_size": 2, "n_epochs": 1,
                 "evaluate_every": 1, "members": 1}  # fmt: skip
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UserError(f"{name} is {value}: it must be at least {smallest}")
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"hidden is {self.hidden}: it needs at least one width of at least 1")
        if self.features is not None and not self.features:
            raise UserError("features is empty: name at least one, or leave it out for all")
        for name, fits, wanted in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("initial_stop_probability", 0 < self.initial_stop_probability < 1, "between 0 and 1"),
            ("exploration", 0 <= self.exploration < 0.5, "in 0 to 0.5"),
            ("input_noise", 0 <= self.input_noise < math.inf, "at least 0"),
        ):
            if not fits:
                raise UserError(f"{name} is {getattr(self, name):g}: it must be {wanted}")
        if self.preset not in PRESETS:
            raise UserError(f"preset {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.advantages not in ("exact", "sampled"):
            raise UserError(f"advantages {self.advantages!r}: choose exact or sampled")
        if self.token_price is not None:
            check_price_range(self.token_price)
        if self.constraint is not None and self.advantages != "exact":
            raise UserError("em_floor and token_budget need exact advantages")
        if self.members > 1 and not self.may_be_ensemble:
            raise UserError(
                f"members is {self.members}: sampled advantages, em_floor and token_budget train a"
                " single policy"
            )

    @property
    def may_be_ensemble(self) -> bool:
        """Whether an ensemble can be trained so."""
        return self.advantages == "exact" and self.constraint is None

    @property
    def constraint(self) -> Constraint | None:
        """What is to be held, if anything is."""
        if self.em_floor is None and self.token_budget is None:
            return None
        return Constraint(self.em_floor, self.token_budget)

    def price_range(self, train: TraceTable) -> tuple[float, float]:
        """The token prices to train for, given the training traces."""
        if self.token_price is not None:
            return check_price_range(self.token_price)
        mean = float(train.full_tokens.mean())
        relative = RELATIVE_PRICE_RANGE if self.constraint is None else CONSTRAINED_PRICE_RANGE
        return relative[0] / mean, relative[1] / mean

    def steps(self, questions: int) -> int:
        """Environment steps in all on so many training questions."""
        if self.total_timesteps is not None:
            return self.total_timesteps
        if self.members > 1:
            return round(MEMBER_STEPS * math.sqrt(max(questions / QUESTIONS_FOR_MEMBER, 1)))
        return round(MOST_STEPS * math.sqrt(min(questions / QUESTIONS_FOR_MOST, 1)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values: dict[str, Any] = json_ready(asdict(self))
        return values


def ensemble_of(config: PPOConfig, questions: int, members: int = MEMBERS) -> PPOConfig:
    """The same as a cross-fitted ensemble on so many questions, where there may be one: its members
    are small, the smaller the fewer questions there are, and take many small updates."""
    if members < 2 or not config.may_be_ensemble:
        return config
    doublings = round(math.log2(max(questions, 1) / QUESTIONS_FOR_MEMBER))
    hidden = MEMBER_WIDTH * 2 ** min(max(doublings, 0), 2)
    return replace(config, members=members, hidden=(hidden,), n_envs=256, batch_size=1024)
