"""Policies: frozen networks that say when to stop, and the folders they are kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rlbudget.arrays import Float32s, Floats
from rlbudget.errors import UserError
from rlbudget.files.folders import Get, read_folder, replace_folder
from rlbudget.policy import network
from rlbudget.policy.card import model_card
from rlbudget.policy.network import Decision, FrozenPolicy
from rlbudget.policy.observation import OBSERVATION_VERSION, PRESETS, Preset
from rlbudget.policy.prices import middle_price
from rlbudget.policy.seen import Marks, as_text, from_text, together

CARD = "README.md"
DEFAULT_THRESHOLD = 0.5


class Policy:
    """A frozen stop policy: one network for every token price in its range.

    Safe to call from several threads. Two policies are equal if their folders would be.
    """

    __slots__ = ("_digest", "_frozen", "features", "price_range", "threshold")

    def __init__(self, frozen_policy: FrozenPolicy) -> None:
        self._frozen = frozen_policy
        self._digest = ""
        self.features: tuple[str, ...] = frozen_policy.features
        """the names of the observation's numbers, in order"""
        self.price_range: tuple[float, float] = frozen_policy.price_range
        """lowest and highest token price it was trained on"""
        self.threshold: float = frozen_policy.threshold
        """it stops where the chance to stop is above this"""

    def __call__(self, observation: npt.ArrayLike, *, token_price: float) -> Decision:
        """Decide at one checkpoint.

        ``observation`` has shape (n_features,), float32, raw (not normalised); ``token_price``
        is reward lost per token. Raises ``ValueError`` for an observation or a price the policy
        was not trained on.
        """
        return self._frozen.decide(observation, token_price)

    def stop_probabilities(self, observations: npt.ArrayLike, token_price: npt.ArrayLike) -> Floats:
        """(n, n_features) float32 -> the chance to stop, (n,) float64.

        ``token_price`` is one number or has shape (n,). The numbers are those of single calls,
        bit for bit. Raises ``ValueError`` as a single call does.
        """
        return self._frozen.stop_probabilities(observations, token_price)

    def alone(self, observation: npt.ArrayLike, token_price: float) -> float:
        """The chance to stop at one checkpoint: what stands over a policy asks so."""
        return self._frozen.alone(observation, token_price)

    @property
    def preset(self) -> Preset:
        """``free``; ``probe`` if it sees a trial answer at every checkpoint; ``turns`` if it sees
        one at turns of thought."""  # fmt: skip
        return next((p for p in PRESETS if p == self._frozen.config.get("preset")), "free")

    @property
    def stops_from(self) -> float:
        """Token price below which a frozen rule never stops, and so looks at nothing; else 0."""
        return float(self._frozen.config.get("stops_from") or 0.0)

    @property
    def recorded(self) -> dict[str, Any]:
        """How the traces it was trained on were made, as far as is known.

        ``stride``, ``probe_tokens`` and ``max_tokens`` (int), ``temperature`` (float), ``model``,
        ``profile`` and ``scorer`` (str).
        """
        trained = self._frozen.config.get("trained") or {}
        return dict((trained.get("traces") or {}).get("recorded") or {})

    @property
    def default_price(self) -> float:
        """The certified token price where there is one, else that of the constraint it was trained
        to, else the middle of the range."""  # fmt: skip
        certificate = self._frozen.config.get("calibration")
        if certificate is not None:
            return float(certificate["token_price"])
        operating = (self._frozen.config.get("trained") or {}).get("operating")
        if operating is not None:
            return float(operating["token_price"])
        return middle_price(self.price_range)

    @property
    def operating_points(self) -> Mapping[str, Mapping[str, Any]]:
        """What each effort means (``policy.operating``); empty for a folder without points."""
        return dict(self._frozen.config.get("operating_points") or {})

    @property
    def out_of_fold(self) -> Mapping[str, Any] | None:
        """What the questions that it was trained on say it is worth, each asked by members that
        were not trained on it (``agents.out_of_fold``); None for a policy without members."""
        return (self._frozen.config.get("trained") or {}).get("out_of_fold")

    @property
    def seen(self) -> Marks | None:
        """Marks of the questions that it and its ancestors were trained, chosen, promoted or
        certified on (``policy.seen``); None for one that does not say."""  # fmt: skip
        calibration = self._frozen.config.get("calibration") or {}
        return together(self.made_with, from_text(calibration.get("seen", "")))

    @property
    def made_with(self) -> Marks | None:
        """``seen`` without the questions that it was certified on, and its efforts chosen on."""
        text = self._frozen.config.get("seen")
        return None if text is None else from_text(text)

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds, without the digests of the files."""
        return {k: v for k, v in self._frozen.config.items() if k != "digests"}

    @property
    def digest(self) -> str:
        """sha256 (hex) of what it is: equal policies have equal ones."""
        if not self._digest:  # asked for by every request that is logged
            whole = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
            for name, weights in self._frozen.weights:
                whole.update(name.encode() + weights)
            self._digest = whole.hexdigest()
        return self._digest

    @property
    def tensors(self) -> Mapping[str, Float32s]:
        """The normaliser and the weights."""
        return self._frozen.tensors

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Policy):
            return NotImplemented
        same = self._frozen.weights == other._frozen.weights
        return same and self.config == other.config

    def __hash__(self) -> int:
        return hash(self._frozen.weights)

    def __repr__(self) -> str:
        low, high = self.price_range
        return f"Policy({len(self.features)} {self.preset} features, prices {low:g} to {high:g})"


def make_policy(
    tensors: Mapping[str, Float32s],
    *,
    features: Sequence[str],
    preset: Preset,
    price_range: tuple[float, float],
    clip: float = 5.0,
    threshold: float = DEFAULT_THRESHOLD,
    trained: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    operating_points: Mapping[str, Mapping[str, Any]] | None = None,
    seen: Marks | None = None,
    stops_from: float | None = None,
) -> Policy:
    """A policy from a trained actor.

    ``tensors``: ``obs_mean``, ``obs_std`` of shape (n_features,), and the weights and biases of
    a tanh network from n_features + 1 inputs to the logits of CONTINUE and STOP,
    under SB3's names. ``trained`` is what it came from, ``operating_points``
    what efforts mean, JSON-ready both; ``seen`` are the marks of the questions that the network was
    made with; ``stops_from`` is the token price below which it never stops, where it pays for
    nothing there. Raises ``UserError`` if the parts do not fit together.
    """
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r}: it is one of {', '.join(PRESETS)}")
    config = {
        "format": network.FORMAT,
        "version": network.VERSION,
        "preset": preset,
        **network_config(tensors, features, price_range, clip, threshold),
        "trained": dict(trained or {}),
        "calibration": None if calibration is None else dict(calibration),
    }
    if seen is not None:
        config["seen"] = as_text(seen)
    if stops_from is not None:
        config["stops_from"] = float(stops_from)
    if operating_points:
        config["operating_points"] = {n: dict(point) for n, point in operating_points.items()}
    try:
        return _policy_of(FrozenPolicy(config, dict(tensors)))
    except ValueError as error:
        raise UserError(str(error)) from None


def seen_also(policy: Policy, marks: Marks) -> Policy:
    """The same policy, which has seen more questions."""
    seen = together(policy.made_with, marks)
    config = policy.config | ({} if seen is None else {"seen": as_text(seen)})
    return Policy(FrozenPolicy(config, dict(policy.tensors)))


def network_config(
    tensors: Mapping[str, Float32s],
    features: Sequence[str],
    price_range: tuple[float, float],
    clip: float,
    threshold: float = DEFAULT_THRESHOLD,
) -> dict[str, Any]:
    """The part of a config on the network and its inputs; a layer without a bias has 0 outputs."""
    sizes = [len(tensors.get(f"{name}.bias", ())) for name in network.layer_names(tensors)]
    return {
        "observation_version": OBSERVATION_VERSION,
        "features": list(features),
        "clip": float(clip),
        "activation": "tanh",
        "layers": [len(features) + 1, *sizes],
        "price_range": [float(price) for price in price_range],
        "threshold": float(threshold),
    }


def load_policy(folder: str | Path) -> Policy:
    """The policy that ``freeze`` wrote to ``folder``, which may be replaced meanwhile.

    Raises ``UserError`` for a folder that is missing, incomplete or altered since, and for
    observations that this version of rlbudget makes in another way.
    """
    try:
        return read_folder(folder, policy_in)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def policy_in(get: Get) -> Policy:
    """The policy in the files that ``get`` gives by their names; ``ValueError`` as ``load_policy``
    raises ``UserError``, without the folder."""  # fmt: skip
    from rlbudget.policy.schema import check_config  # brings msgspec

    policy = _policy_of(network.policy_of(get, check_config))
    _ = policy.seen
    _check_range(policy)
    return policy


def _policy_of(frozen_policy: FrozenPolicy) -> Policy:
    """``ValueError`` for a network of other actions than CONTINUE and STOP."""
    actions = frozen_policy.config["layers"][-1]
    if actions != 2:
        raise ValueError(f"a policy has two logits, CONTINUE and STOP, and this has {actions}")
    return Policy(frozen_policy)


def _check_range(policy: Policy) -> None:
    """What the folder says of prices is of prices that the policy serves."""
    prices = {"the certified token price": policy.default_price}
    points = policy.operating_points.items()
    prices |= {f"the price of effort {name}": point["token_price"] for name, point in points}
    for what, price in prices.items():
        if price and not network.in_range(price, policy.price_range):
            low, high = policy.price_range
            raise ValueError(f"{network.CONFIG}: {what}, {price:g}, is outside {low:g} to {high:g}")


def policy_folders(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Policy folders under their last names, with the parent's where names are equal.

    Raises ``UserError`` where that does not tell two apart.
    """
    resolved = list(dict.fromkeys(Path(folder).absolute() for folder in folders))
    last = [folder.name for folder in resolved]
    names = [
        folder.name if last.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        for folder in resolved
    ]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two policies are called {twice}; rename one of their folders")
    return dict(zip(names, resolved, strict=True))


def load_policies(folders: Sequence[str | Path]) -> dict[str, Policy]:
    """Several policies by name, in order; ``UserError`` as ``policy_folders``, ``load_policy``."""
    return {name: load_policy(folder) for name, folder in policy_folders(folders).items()}


def save_policy(
    folder: str | Path, policy: Policy, *, overwrite: bool = False, standalone: bool = False
) -> None:
    """Write a policy folder: all of it or nothing.

    ``standalone`` adds ``policy.py``, which serves the folder with numpy alone. An existing policy
    is replaced only with ``overwrite``; any other folder with content is refused. Raises
    ``UserError``, also when the disk is full.
    """
    folder = Path(folder)
    replace_folder(
        folder,
        policy_files(policy, standalone=standalone),
        check=lambda there: _check_replaceable(there, overwrite),
    )


def policy_files(policy: Policy, *, standalone: bool = False) -> dict[str, bytes]:
    """The files of a policy folder by their names."""
    from safetensors.numpy import save  # serving needs numpy alone

    content = {network.WEIGHTS: save(dict(policy.tensors))}
    if standalone:
        content[network.CODE] = Path(network.__file__).read_bytes()
    config = policy.config
    config["digests"] = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    config["digests"][network.CONFIG] = network.config_digest(config)
    content[network.CONFIG] = (json.dumps(config, indent=1, allow_nan=False) + "\n").encode()
    content[CARD] = model_card(config).encode()
    return content


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the policy")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    ours = {network.CONFIG, network.WEIGHTS, network.CODE, CARD, "__pycache__"}
    if not {network.CONFIG, network.WEIGHTS} <= names <= ours:
        other = min(names - ours, default=min(names))
        raise UserError(f"{folder} holds other things ({other}); choose a new folder")
    if not overwrite:
        raise UserError(f"{folder} already holds a policy; choose a new folder or pass --overwrite")
