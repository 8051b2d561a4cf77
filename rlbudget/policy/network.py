"""A frozen stop policy, served with numpy alone.

This file is the whole of a served policy: ``rlbudget`` uses it, and ``rlbudget freeze
--standalone`` copies it, as ``policy.py``, into the policy folder. There it stands alone and
serves the folder it lies in::

    from policy import decide

    decision = decide(observation, token_price=2e-4)
    if decision.stop: ...

The observation holds the features that ``config.json`` names, in that order, as float32. The
folder's digests show that no file was damaged or edited; they do not prove who wrote it.
Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import numbers
import threading
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

FORMAT = "rlbudget-policy"
VERSION = 1
CONFIG, WEIGHTS, CODE = "config.json", "policy.safetensors", "policy.py"
_FLOAT32 = np.dtype(np.float32)
_LARGEST = 1e9
"""a weight; what is beyond could overflow on its way through"""
_LARGEST_SEEN = 1e30
"""a mean or a standard deviation"""
_ROWS = 8192  # of a batch at a time, to bound memory


def in_range(token_price: float, price_range: tuple[float, float]) -> bool:
    """Whether a price is in a range; one computed in float64 may miss an end by a billionth."""
    return price_range[0] * (1 - 1e-9) <= token_price <= price_range[1] * (1 + 1e-9)


class Decision(NamedTuple):
    """What to do at a checkpoint."""

    stop: bool
    stop_probability: float


class FrozenPolicy:
    """A tanh network from a normalised observation and a token price to a chance to stop.

    With three logits instead of two (a cascade) ``odds`` is what to call.

    Calls share no changing state between threads. A batch gives the same numbers, bit for bit,
    as its rows one by one, so a replay decides as the live decode does.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Float32s]) -> None:
        self.config = config
        self.tensors = {
            name: np.array(tensor, np.float32, order="C") for name, tensor in tensors.items()
        }
        for tensor in self.tensors.values():
            tensor.setflags(write=False)
        self.features: tuple[str, ...] = tuple(_strings(config, "features"))
        self.price_range: tuple[float, float] = _price_range(config)
        self.threshold = _number(config, "threshold")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"{CONFIG}: threshold {self.threshold} is not in [0, 1]")
        clip = _number(config, "clip")
        if config.get("activation") != "tanh" or not 0 < clip <= _LARGEST:
            raise ValueError(f"{CONFIG}: needs the activation tanh and a positive clip")
        self._mean, self._std, *weights = _layers(self.tensors, len(self.features))
        sizes = [weights[0].shape[1] - 1, *(len(weight) for weight in weights)]
        if config.get("layers") != sizes:
            raise ValueError(
                f"{CONFIG}: layers {config.get('layers')}, but the weights are {sizes}"
            )
        self._upper = (np.float32(clip) * self._std).astype(np.float32)
        self._lower = -self._upper
        *self._hidden, last = weights
        self._ends = tuple((row - last[0]).astype(np.float32) for row in last[1:])
        low, high = self.price_range
        self._log_low = math.log(low)
        self._log_span = math.log(high) - math.log(low)
        self._shape = (len(self.features),)
        self._memory = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenPolicy, (self.config, self.tensors)

    @property
    def weights(self) -> tuple[tuple[str, bytes], ...]:
        """Its tensors as (name, bytes), sorted: equal for equal networks."""
        return tuple((name, tensor.tobytes()) for name, tensor in sorted(self.tensors.items()))

    def decide(self, observation: npt.ArrayLike, token_price: float) -> Decision:
        """One decision: stop if the chance to stop is above the threshold.

        ``observation`` has shape (n_features,), float32; ``token_price`` is reward lost per
        token. Raises ``ValueError`` for what the policy was not trained on: another length or
        kind of number, NaN or infinity, a price out of ``price_range``.
        """
        probability = self.alone(observation, token_price)
        return Decision(probability > self.threshold, probability)

    def alone(self, observation: npt.ArrayLike, token_price: float) -> float:
        """The chance to stop at one checkpoint, (n_features,); raises as ``decide`` does."""
        if (
            type(observation) is not np.ndarray
            or observation.dtype is not _FLOAT32
            or observation.shape != self._shape
        ):
            observation = self._accept(observation, self._shape)
        try:
            x, seen, flags, finite, steps, end = self._memory.buffers
        except AttributeError:
            x, seen, flags, finite, steps, end = self._memory.buffers = self._buffers()
        np.isfinite(observation, finite)
        if 0 in flags:  # the bytes behind ``finite``: four times faster than finite.all()
            self._refuse(observation)
        np.subtract(observation, self._mean, seen)
        np.maximum(seen, self._lower, out=seen)
        np.minimum(seen, self._upper, out=seen)
        np.divide(seen, self._std, seen)
        x[-2] = self._price_feature(token_price)
        for weight, source, out in steps:
            np.dot(weight, source, out)
            np.tanh(out, out)
        return 0.5 + 0.5 * math.tanh(0.5 * float(end.dot(self._ends[0])))

    def stop_probabilities(self, observations: npt.ArrayLike, token_price: npt.ArrayLike) -> Floats:
        """The chances to stop: float64, (n,).

        ``observations`` has shape (n, n_features), float32; ``token_price`` is one number or
        has shape (n,). Raises ``ValueError`` as ``decide`` does, naming the row.
        """
        rows, prices = self._rows(observations, token_price)
        if len(rows) == 1:  # what stands over a policy asks live like this
            return np.array([self.alone(rows[0], prices.item())])
        odds = self._odds(rows, prices)[:, 0].tolist()
        return np.array([0.5 + 0.5 * math.tanh(0.5 * one) for one in odds], dtype=np.float64)

    def odds(self, observations: npt.ArrayLike, token_price: npt.ArrayLike) -> Floats:
        """Each action's logit less that of CONTINUE, STOP first: float64, (n, actions - 1).

        Arguments and errors are those of ``stop_probabilities``.
        """
        return self._odds(*self._rows(observations, token_price))

    def _rows(
        self, observations: npt.ArrayLike, token_price: npt.ArrayLike
    ) -> tuple[Float32s, npt.NDArray[Any]]:
        """The observations, (n, n_features), and their prices, () or (n,), checked."""
        rows = np.asarray(observations)
        rows = self._accept(rows, (len(rows) if rows.ndim else 0, *self._shape))
        if not np.isfinite(rows).all():
            self._refuse(rows)
        prices = np.asarray(token_price)
        if prices.ndim and prices.shape != (len(rows),):
            raise ValueError(f"token_price: shape {prices.shape}, not () or ({len(rows)},)")
        return rows, prices

    def _odds(self, rows: Float32s, prices: npt.NDArray[Any]) -> Floats:
        feature = np.array([self._price_feature(price) for price in np.atleast_1d(prices).tolist()])
        feature = np.broadcast_to(feature, (len(rows),))
        out: Floats = np.empty((len(rows), len(self._ends)))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            out[part] = self._chunk(rows[part], feature[part])
        return out

    def _chunk(self, rows: Float32s, price_feature: Floats) -> Float32s:
        x = np.ones((len(rows), len(self.features) + 2), dtype=np.float32)
        seen = np.maximum(rows - self._mean, self._lower)
        x[:, :-2] = np.minimum(seen, self._upper) / self._std
        x[:, -2] = price_feature
        for weight in self._hidden:
            # Stacked matrix-vector products make the very calls that ``decide`` makes; one
            # matrix product would be faster and round differently.
            out = np.ones((len(rows), len(weight) + 1), dtype=np.float32)
            out[:, :-1] = np.tanh(np.matmul(weight, x[:, :, None])[:, :, 0])
            x = out
        ends = [np.matmul(x[:, None, :], end[:, None])[:, 0, 0] for end in self._ends]
        return np.stack(ends, axis=1)

    def _buffers(self) -> tuple[Any, ...]:
        """One thread's working memory; the ones that stay at the ends multiply the biases."""
        flags = bytearray(len(self.features))
        x: Float32s = np.ones(len(self.features) + 2, dtype=np.float32)
        source = x
        steps = []
        for weight in self._hidden:
            target: Float32s = np.ones(len(weight) + 1, dtype=np.float32)
            steps.append((weight, source, target[:-1]))
            source = target
        return x, x[:-2], flags, np.frombuffer(flags, dtype=np.bool_), steps, source

    def _price_feature(self, token_price: float) -> float:
        if type(token_price) is not float:
            if not isinstance(token_price, numbers.Real):
                raise ValueError(f"token_price: {token_price!r} is not a number")
            token_price = float(token_price)
        if not in_range(token_price, self.price_range):
            low, high = self.price_range
            raise ValueError(
                f"token_price: {token_price:g} is outside {low:g} to {high:g}, the prices this"
                " policy was trained on"
            )
        if not self._log_span:
            return 0.0
        return 2 * (math.log(token_price) - self._log_low) / self._log_span - 1

    def _accept(self, observation: npt.ArrayLike, shape: tuple[int, ...]) -> Float32s:
        try:
            values = np.asarray(observation)
        except ValueError:
            raise ValueError("observation: rows of different lengths") from None
        if values.shape != shape:
            raise ValueError(
                f"observation: shape {values.shape}, but this policy was trained on"
                f" {len(self.features)} features, {self.features[0]} to {self.features[-1]}"
            )
        if values.dtype.kind != "f":
            raise ValueError(f"observation: {values.dtype} instead of float32")
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def _refuse(self, observation: Float32s) -> None:
        *row, column = (int(i) for i in np.argwhere(~np.isfinite(observation))[0])
        where = f" in row {row[0]}" if row else ""
        value = observation[(*row, column)]
        raise ValueError(f"observation: {self.features[column]} is {value}{where}, not finite")


def layer_names(tensors: Mapping[str, Float32s]) -> list[str]:
    """The layers of a network under SB3's names, in order; the last gives the logits."""
    names = (f"mlp_extractor.policy_net.{2 * i}" for i in range(len(tensors)))
    return [*(name for name in names if f"{name}.weight" in tensors), "action_net"]


def _layers(tensors: Mapping[str, Float32s], n_features: int) -> list[Float32s]:
    """Mean, std, then each layer as (outputs, inputs + 1), its bias in the last column."""
    names = layer_names(tensors)
    expected = {"obs_mean", "obs_std"} | {f"{n}.{p}" for n in names for p in ("weight", "bias")}
    if set(tensors) != expected:
        odd = ", ".join(sorted(set(tensors) ^ expected))
        raise ValueError(f"{WEIGHTS}: tensors missing or unknown: {odd}")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{WEIGHTS}: {name} holds a number that is not finite")
        most = _LARGEST_SEEN if name.startswith("obs_") else _LARGEST
        if tensor.size and np.abs(tensor).max() > most:
            raise ValueError(f"{WEIGHTS}: {name} holds a number beyond {most:g}")
    out = [tensors["obs_mean"], tensors["obs_std"]]
    if any(part.shape != (n_features,) for part in out) or not (out[1] > 0).all():
        raise ValueError(f"{WEIGHTS}: the normaliser needs a mean and a positive std per feature")
    inputs = n_features + 1
    for name in names:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        outputs = len(bias) if bias.ndim else 0
        if name == "action_net" and outputs != 3:
            outputs = 2
        if bias.shape != (outputs,) or weight.shape != (outputs, inputs) or not outputs:
            raise ValueError(f"{WEIGHTS}: {name} has shape {weight.shape}, {bias.shape}, which"
                             f" does not fit {inputs} inputs")  # fmt: skip
        out.append(np.concatenate([weight, bias[:, None]], axis=1))
        inputs = outputs
    return out


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
    raise ValueError(f"{CONFIG}: {name} must be a number, not {value!r:.40}")


def _strings(config: Mapping[str, Any], name: str) -> list[str]:
    value = config.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{CONFIG}: {name} must be a list of names")
    return cast(list[str], value)


def _price_range(config: Mapping[str, Any]) -> tuple[float, float]:
    value = config.get("price_range")
    if isinstance(value, list) and len(value) == 2:
        low, high = (_number({"price_range": v}, "price_range") for v in value)
        if 0 < low <= high:
            return low, high
    raise ValueError(f"{CONFIG}: price_range must be [low, high] with 0 < low <= high")


def read_tensors(data: bytes, *, where: str = WEIGHTS) -> dict[str, Float32s]:
    """The float32 tensors of a safetensors file. ``ValueError`` for anything else in it."""
    return read_safetensors(data, where=where, kinds=("F32",))[0]


def read_safetensors(
    data: bytes, *, where: str, kinds: Collection[str] = ("F32", "F64")
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors file and the texts about them.

    ``ValueError`` for anything else in it.
    """
    what = " and ".join(_KINDS[kind].name for kind in kinds)
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > len(data) - 8:
            raise ValueError("its header is cut off")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        about = header.pop("__metadata__", {})
        if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
            raise ValueError("what its header says of the whole are no texts")
        tensors, place = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in kinds or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"{name} is {entry['dtype']} {shape}, not a {what} tensor")
            kind = _KINDS[entry["dtype"]]
            if start != place or end != start + kind.itemsize * math.prod(shape) or end > len(body):
                raise ValueError(f"{name} does not lie where the header says")
            values = np.frombuffer(body, kind, math.prod(shape), start)
            tensors[name], place = values.astype(kind.newbyteorder("=")).reshape(shape), end
        if place != len(body):
            raise ValueError("bytes are left over at its end")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error)[:200] if type(error) is ValueError else "its header is damaged"
        raise ValueError(f"{where}: not a safetensors file of {what} tensors: {reason}") from None
    return tensors, about


_KINDS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of a config without its own digest, in canonical JSON."""
    files = {k: v for k, v in dict(config.get("digests") or {}).items() if k != CONFIG}
    text = json.dumps({**config, "digests": files}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def policy_of(
    get: Callable[[str], bytes], check: Callable[[dict[str, Any]], None] = lambda config: None
) -> FrozenPolicy:
    """The policy in the files that ``get`` gives by their names.

    ``check`` is called with a config that is whole, before anything is made of it. ``ValueError``
    in one line for a file that is missing or altered, and as ``get`` and ``check`` raise it.
    """

    def read(name: str) -> bytes:
        try:
            return get(name)
        except ValueError as error:
            raise ValueError(f"{error}; {_MEND}") from None

    try:
        config = json.loads(read(CONFIG), parse_constant=_no_number)
    except (UnicodeDecodeError, json.JSONDecodeError, _NoNumberError, RecursionError):
        raise ValueError(f"{CONFIG} is not JSON; {_MEND}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{CONFIG} is not that of a policy")
    if config.get("version") != VERSION:
        raise ValueError(
            f"policy format version {config.get('version')!r:.40}, but this rlbudget reads"
            f" version {VERSION}; use the rlbudget that froze it"
        )
    digests = config.get("digests")
    if not isinstance(digests, dict) or digests.get(CONFIG) != config_digest(config):
        raise ValueError(f"{CONFIG} was altered after freezing; {_MEND}")
    check(config)
    named = (WEIGHTS, CODE) if CODE in digests else (WEIGHTS,)
    files = {name: read(name) for name in named}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != digests.get(name):
            raise ValueError(f"{name} was altered after freezing; {_MEND}")
    return FrozenPolicy(config, read_tensors(files[WEIGHTS]))


_MEND = "freeze the run again or copy the whole folder again"


class _NoNumberError(Exception):
    """NaN or an infinity in JSON."""


def _no_number(text: str) -> None:
    raise _NoNumberError(text)


def load(folder: Path) -> FrozenPolicy:
    """The policy in a folder; ``ValueError`` in one line if a file is missing or altered."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such policy folder")
    try:
        return policy_of(lambda name: _read(folder, name))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None


@cache
def here() -> FrozenPolicy:
    """The policy of the folder this file lies in."""
    return load(Path(__file__).resolve().parent)


def decide(observation: npt.ArrayLike, token_price: float) -> Decision:
    """One decision of the policy in this folder: see ``FrozenPolicy.decide``."""
    return here().decide(observation, token_price)


def stop_probabilities(observations: npt.ArrayLike, token_price: npt.ArrayLike) -> Floats:
    """Many chances to stop, (n,): see ``FrozenPolicy.stop_probabilities``."""
    return here().stop_probabilities(observations, token_price)
