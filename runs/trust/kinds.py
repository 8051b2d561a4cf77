"""Every kind of file and folder that decides: how one is written, and what one says once read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Float32s
from rlbudget.policy.card import model_card
from rlbudget.policy.cascade import Cascade, load_cascade, make_cascade, save_cascade
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.folder import Policy, load_policy, make_policy, save_policy
from rlbudget.policy.observation import feature_names
from rlbudget.policy.operating import Swept, point_of
from rlbudget.signals.tokens import SIGNALS
from rlbudget.strategies.blend import SavedBlend, load_blend, policy_digest, save_blend
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.folder import chooser_digest, load_chooser, save_chooser
from rlbudget.strategies.chooser.record import TrackRecord
from rlbudget.strategies.correction.correct import Correction, Refiner
from rlbudget.strategies.correction.file import (
    load_correction,
    load_second_policy,
    save_correction,
)
from rlbudget.strategies.ensemble import Blend
from rlbudget.strategies.feedback.registry import Registry, load_serving
from rlbudget.strategies.impact import ImpactModel, guarded
from rlbudget.strategies.impact_file import load_impact, save_impact
from rlbudget.traces.pairs import NATURAL_END_SIGNAL

FREE = feature_names(SIGNALS, "free")
PRICES = (1e-5, 1e-2)
_RECORDED = {"stride": 8, "max_tokens": 200, "temperature": 0.7, "model": "m", "profile": "think"}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file or folder."""

    name: str
    write: Callable[[Path, int], None]
    """write the version of a seed, over what is there"""
    read: Callable[[Path], Any]
    """everything that the version decides, comparable"""


def tensors_of(inputs: int, seed: int, actions: int = 2) -> dict[str, Float32s]:
    """A normaliser of ``inputs`` features and a small actor."""
    rng = np.random.default_rng(seed)
    made = {
        "obs_mean": rng.normal(0, 3, inputs),
        "obs_std": np.exp(rng.normal(0, 1, inputs)),
        "mlp_extractor.policy_net.0.weight": rng.normal(0, 0.2, (6, inputs + 1)),
        "mlp_extractor.policy_net.0.bias": rng.normal(0, 0.1, 6),
        "action_net.weight": rng.normal(0, 1, (actions, 6)),
        "action_net.bias": rng.normal(0, 0.1, actions),
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def policy_of(seed: int) -> Policy:
    """A policy with everything that a config may say."""
    points = {name: point_of(Swept(1e-4, 0.0, 0.0, 0.1), loss, 100)
              for name, loss in EFFORTS.items()}  # fmt: skip
    certificate = {"mode": "loss", "confidence": 0.9, "questions": 500, "max_em_loss": 0.01,
                   "token_price": 1e-3, "savings": 0.2,
                   "certified": [{"max_em_loss": 0.01, "token_price": 1e-3}]}  # fmt: skip
    return make_policy(
        tensors_of(len(FREE), seed),
        features=FREE,
        preset="free",
        price_range=PRICES,
        trained={"seed": seed, "traces": {"digest": "d", "split_seed": 0, "recorded": _RECORDED},
                 "validation": {"prices": [{"relative_price": 0.1, "exact_match": 0.5}],
                                "mean_oracle_gap_closed": 0.1}},
        calibration=certificate,
        operating_points=points,
        seen=np.arange(seed, seed + 4, dtype=np.uint64),
    )  # fmt: skip


def impact_of(seed: int, features: tuple[str, ...] = FREE) -> ImpactModel:
    """A guard's network."""
    rng, n = np.random.default_rng(seed), len(features)
    return ImpactModel(
        features, rng.normal(size=n), np.exp(rng.normal(size=n)),
        (rng.normal(size=(n, 4)), rng.normal(size=(4, 1))),
        (rng.normal(size=4), rng.normal(size=1)),
        {"digest": "d", "split_seed": seed},
    )  # fmt: skip


def _cascade_of(seed: int) -> Cascade:
    features = (*FREE, NATURAL_END_SIGNAL)
    return make_cascade(
        tensors_of(len(features), seed, actions=3), features=features, price_range=PRICES,
        ratio=0.25, clip=5.0, trained={"recorded": {"small": _RECORDED, "large": _RECORDED}},
    )  # fmt: skip


def _chooser_of(seed: int) -> Chooser:
    rng = np.random.default_rng(seed)
    members = (MemberOf("a", 0.25, policy_of(seed), _RECORDED), MemberOf("b", 1.0, None, {}))
    record = TrackRecord((2, 2))
    record.add("sums", rng.integers(0, 2, (2, 2)), rng.uniform(5, 50, (2, 2)))
    features = ("log_price", "record.0", "record.1")
    ways = (Way("before"), Way("before", seed % 2))
    wrong = {"before": (impact_of(seed, features), impact_of(seed + 9, features))}
    return Chooser(members, np.array([1e-4, 1e-3]), ways, wrong, record, {"seed": seed})  # type: ignore[arg-type]


def _seen(n: int) -> Float32s:
    return np.random.default_rng(0).normal(size=(8, n)).astype(np.float32)


def said_by(policy: Policy) -> Any:
    """What a policy decides, and all that is read of its folder."""
    chances = policy.stop_probabilities(_seen(len(policy.features)), policy.default_price)
    assert model_card(policy.config)
    return (policy.digest, chances.tolist(), policy.recorded, sorted(policy.operating_points),
            policy.preset, None if policy.seen is None else policy.seen.tolist())  # fmt: skip


def _guard(path: Path) -> Any:
    model = load_impact(path)
    policy = make_policy(tensors_of(len(model.features), 0), features=model.features,
                         preset="free", price_range=PRICES)  # fmt: skip
    over = guarded(policy, model, max_risk=0.5)
    seen = _seen(len(model.features))
    return (model.features, model.risk(seen).tolist(), dict(model.trained),
            [tuple(over(one, token_price=1e-3)) for one in seen])  # fmt: skip


def _blend(path: Path) -> Any:
    saved = load_blend(path)
    chances = [np.linspace(0, 1, 5)] * len(saved.blend.weights)
    return saved.members, saved.price_factors, dict(saved.trained), [
        saved.blend.chance(chances, price).tolist() for price in PRICES
    ]  # fmt: skip


def _cascade(path: Path) -> Any:
    found = load_cascade(path)
    middle = (found.price_range[0] * found.price_range[1]) ** 0.5
    chances = found.chances(_seen(len(found.features)), middle)
    return found.features, found.ratio, found.config, chances.tolist()


def _correction(path: Path) -> Any:
    found, policy = load_correction(path), load_second_policy(path)
    risk = found.doubt.risk(_seen(len(found.doubt.features)))
    second = None if found.second is None else (found.second.ratio, dict(found.second.recorded))
    return (found.threshold, found.budget, found.rounds, second, risk.tolist(),
            None if policy is None else said_by(policy))  # fmt: skip


def _chooser(path: Path) -> Any:
    found = load_chooser(path)
    return (chooser_digest(found), [(m.name, m.ratio, dict(m.recorded)) for m in found.members],
            dict(found.trained), [found.place(price) for price in PRICES])  # fmt: skip


def _registry(path: Path) -> Any:
    journal, serving = Registry(path).journal(), load_serving(path)
    told = [(event.action, event.version, event.why) for event in journal.events]
    return serving.version, serving.policy.digest, told, Registry(path).versions()


def _write_registry(path: Path, seed: int) -> None:
    registry = Registry(path)
    registry.promote(registry.add(policy_of(seed), f"version of seed {seed}"))


def _write_blend(path: Path, seed: int) -> None:
    members = (policy_digest(policy_of(1)), policy_digest(policy_of(2)))
    save_blend(path, SavedBlend(Blend((0.5 + seed, 0.5), 0.1, -0.2), (1.0, 2.0), members,
                                {"digest": "d", "split_seed": seed}))  # fmt: skip


def _write_correction(path: Path, seed: int) -> None:
    policy = None if path.suffix == ".safetensors" else policy_of(seed)
    given = Correction(impact_of(seed), 0.3, 16, 2, Refiner(2.0, _RECORDED))
    save_correction(path, given, policy)


KINDS = {
    "policy": Kind(
        "policy",
        lambda path, seed: save_policy(path, policy_of(seed), overwrite=True, standalone=True),
        lambda path: said_by(load_policy(path)),
    ),
    "guard.safetensors": Kind("guard", lambda path, s: save_impact(path, impact_of(s)), _guard),
    "blend.json": Kind("blend", _write_blend, _blend),
    "cascade.safetensors": Kind(
        "cascade", lambda path, seed: save_cascade(path, _cascade_of(seed)), _cascade
    ),
    "correction.safetensors": Kind("correction, a file", _write_correction, _correction),
    "correction": Kind("correction, a folder", _write_correction, _correction),
    "chooser": Kind("chooser", lambda path, s: save_chooser(path, _chooser_of(s)), _chooser),
    "registry": Kind("registry", _write_registry, _registry),
}
"""by what one is called"""
