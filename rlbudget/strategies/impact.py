"""Impact: the chance that stopping here loses an answer that the full decode would have got.

A small network on a policy's own observation, fitted to the record, where both answers are
known, and calibrated on questions it was not fitted to. It guards any policy (*stop only where
the risk is at most r*) and is the confidence of an exit. Serving needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats
from rlbudget.errors import UserError, missing_extra
from rlbudget.policy.observation import observe
from rlbudget.strategies.steered import AnyPolicy, SteeredPolicy, steered
from rlbudget.traces.table import TraceTable

if TYPE_CHECKING:
    from rlbudget.console import Advance


CLIP = 5.0
HIDDEN = (32, 32)


@dataclass(frozen=True, slots=True)
class ImpactModel:
    """A tanh network from an observation to a risk; safe to call from several threads."""

    features: tuple[str, ...]
    """the observation it reads, as ``rlbudget.policy.observation`` names it"""
    mean: Floats
    std: Floats
    weights: tuple[Floats, ...]
    """(inputs, outputs) of each layer, the last one has one output"""
    biases: tuple[Floats, ...]
    trained: Mapping[str, Any] = field(default_factory=dict)
    """what it was fitted to, JSON-ready: ``digest`` of the traces, ``split_seed``, and ``seen``,
    the marks of its questions, where known"""

    def risk(self, observations: npt.ArrayLike) -> Floats:
        """(n, n_features) or (n_features,) -> the chance that a stop loses an answer, (n,)."""
        rows = np.atleast_2d(np.asarray(observations, dtype=np.float64))
        if rows.shape[1] != len(self.features):
            raise ValueError(f"{rows.shape[1]} features, not {len(self.features)}")
        if len(rows) == 1:
            return np.array([self.alone(rows[0])])
        x = np.clip((rows - self.mean) / self.std, -CLIP, CLIP)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.tanh(x @ weight + bias)
        logit: Floats = (x @ self.weights[-1] + self.biases[-1])[:, 0]
        risk: Floats = 1 / (1 + np.exp(-logit.clip(-700, 700)))  # exp must not overflow
        return risk

    def alone(self, observation: npt.NDArray[Any]) -> float:
        """The risk at one checkpoint, (n_features,)."""
        if len(observation) != len(self.features):
            raise ValueError(f"{len(observation)} features, not {len(self.features)}")
        x = np.subtract(observation, self.mean, dtype=np.float64)
        np.divide(x, self.std, x)
        np.minimum(np.maximum(x, -CLIP, out=x), CLIP, out=x)
        last = len(self.weights) - 1
        for layer, weight in enumerate(self.weights):
            x = np.dot(x, weight)
            np.add(x, self.biases[layer], x)
            if layer < last:
                np.tanh(x, x)
        return 0.5 + 0.5 * math.tanh(0.5 * x.item())


@dataclass(frozen=True, slots=True)
class Guard:
    """Lets a policy stop only where the risk is low enough."""

    policy: AnyPolicy
    impact: ImpactModel
    max_risk: float

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """As the policy's; no chance to stop where the risk is too high."""
        stop = self.policy.stop_probabilities(observations, token_price)
        return np.where(self.impact.risk(observations) <= self.max_risk, stop, 0.0)

    def asks(self, token_price: float) -> list[tuple[AnyPolicy, float]]:
        """The policy, at the same price."""
        return [(self.policy, token_price)]

    def alone(self, observation: Any, token_price: float) -> float:
        """``stop_probabilities`` at one checkpoint, (n_features,)."""
        stop = self.policy.alone(observation, token_price)
        return stop if self.impact.alone(observation) <= self.max_risk else 0.0


def guarded(policy: AnyPolicy, impact: ImpactModel, *, max_risk: float) -> SteeredPolicy:
    """Guard a policy; ``max_risk`` is the share of stops that may lose an answer, in [0, 1].

    Raises ``UserError`` for another range and for a model of another observation.
    """
    check_risk(max_risk)
    if impact.features != policy.features:
        raise UserError("the impact model reads another observation than the policy: fit it on the"
                        " policy's features")  # fmt: skip
    return steered(policy, Guard(policy, impact, max_risk))


def check_risk(max_risk: float) -> None:
    """``UserError`` unless it lies in [0, 1]."""
    if not 0 <= max_risk <= 1:
        raise UserError(f"max_risk must lie in [0, 1], not {max_risk:g}")


def lost_by_stopping(table: TraceTable) -> Bools:
    """(m,) whether the full decode is right and a stop at the checkpoint is not."""
    natural = table.final_exact_match[table.trace_of_row]
    lost: Bools = (natural == 1) & (table.exit_exact_match == 0)
    return lost


def fit_impact(
    train: TraceTable,
    validation: TraceTable,
    features: Sequence[str],
    *,
    epochs: int = 60,
    seed: int = 0,
    progress: Advance | None = None,
) -> ImpactModel:
    """Fit on the checkpoints of ``train``, choose the epoch and calibrate on ``validation``.

    The two must have no question in common. The calibration is a straight line on the log-odds.
    Raises ``UserError`` where stopping loses nothing or everything in one of the two, and without
    scikit-learn.
    """
    if np.intersect1d(train.question_ids, validation.question_ids).size:
        raise ValueError("a question is both in the training and in the validation traces")
    y, y_validation = lost_by_stopping(train), lost_by_stopping(validation)
    for what, lost in (("training", y), ("validation", y_validation)):
        if len(np.unique(lost)) < 2:
            raise UserError(
                f"in the {what} traces stopping loses an answer everywhere or nowhere: there is"
                " nothing to learn"
            )
    return fit_chance(
        features,
        (observe(train, features), y),
        (observe(validation, features), y_validation),
        epochs=epochs,
        weight_decay=1e-2,
        seed=seed,
        progress=progress,
    )


def fit_chance(
    features: Sequence[str],
    train: tuple[Float32s, Bools],
    validation: tuple[Float32s, Bools],
    *,
    epochs: int,
    weight_decay: float,
    seed: int,
    hidden: tuple[int, ...] = HIDDEN,
    progress: Advance | None = None,
) -> ImpactModel:
    """The chance of an event given an observation, from observations (m, n_features) and whether
    it happened (m,), which must be so and not so in both parts.

    Epoch and calibration are chosen on ``validation``. Raises ``UserError`` without scikit-learn.
    """  # fmt: skip
    try:
        from sklearn import linear_model, metrics, neural_network
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    (observed, y), (observed_validation, y_validation) = train, validation
    seen, seen_validation = (part.astype(np.float64) for part in (observed, observed_validation))
    mean, std = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
    x, x_validation = (
        np.clip((rows - mean) / std, -CLIP, CLIP) for rows in (seen, seen_validation)
    )
    network = neural_network.MLPClassifier(
        hidden,
        activation="tanh",
        alpha=weight_decay,
        batch_size=min(512, len(x)),
        random_state=seed,
    )
    best, weights, biases = np.inf, [], []
    for epoch in range(epochs):
        if progress is not None:
            progress(epoch, epochs)
        network.partial_fit(x, y, classes=np.array([False, True]))
        loss = metrics.log_loss(y_validation, network.predict_proba(x_validation)[:, 1])
        if loss < best:
            best = loss
            weights = [weight.copy() for weight in network.coefs_]
            biases = [bias.copy() for bias in network.intercepts_]
    if progress is not None:
        progress(epochs, epochs)
    raw = ImpactModel(tuple(features), mean, std, tuple(weights), tuple(biases))
    chance = np.clip(raw.risk(seen_validation), 1e-7, 1 - 1e-7)
    odds = np.log(chance / (1 - chance))
    line = linear_model.LogisticRegression(C=1e6).fit(odds[:, None], y_validation)
    slope, offset = max(float(line.coef_[0, 0]), 0.0), float(line.intercept_[0])
    weights[-1], biases[-1] = weights[-1] * slope, biases[-1] * slope + offset
    return ImpactModel(tuple(features), mean, std, tuple(weights), tuple(biases))
