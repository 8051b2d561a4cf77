"""What a plan says of a running service alone: how the price is steered, and who waits for whom.

The sections ``[price]`` and ``[queue]`` of a plan; ``rlbudget/serve/price`` and
``rlbudget/serve/queue`` do what they say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlbudget.errors import UserError
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.toml_lines import TomlFile

Mode = Literal["fixed", "em-floor", "token-budget"]
NUMBER = (int, float)
PRICE_KEYS: Mapping[str, Any] = {
    "mode": str, "target": NUMBER, "window": int, "feedback": bool, "alarm_every": int,
    "latency": NUMBER, "predictor": str,
}  # fmt: skip
QUEUE_KEYS: Mapping[str, Any] = {
    "capacity": int, "rate": NUMBER, "waiting": int, "patience": NUMBER, "default": str,
    "classes": dict, "tokens_per_minute": int,
}  # fmt: skip
CLASS_KEYS: Mapping[str, Any] = {
    "priority": NUMBER, "price_factor": NUMBER, "cap": int, "reserved": int,
    "exempt": bool,
}  # fmt: skip
_KINDS = {int: "a whole number", bool: "true or false", NUMBER: "a number"}
_MOST_CLASSES = 100


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """How the token price of requests that name none is steered."""

    mode: Mode = "fixed"
    target: float | None = None
    """``em-floor``: exact match below which no window shall fall, in (0, 1). ``token-budget``:
    tokens a request, in the mean of a window"""
    window: int = 1000
    """requests"""
    feedback: bool = False
    """whether verdicts on requests that were not audited count, which are biased where those who
    answer are not like those who do not"""
    alarm_every: int = 2_400_000
    """requests, at least, from one false alarm to the next, in the mean"""
    latency: float | None = None
    """seconds within which 95% of the requests shall end; None: load does not move the price"""
    predictor: ImpactModel | None = None
    """chance that an answer is wrong (``rlbudget predict``), to go by between verdicts; None: the
    guard's risk, where there is a guard"""


@dataclass(frozen=True, slots=True)
class QueueClass:
    """Requests that are treated alike."""

    priority: float = 0.0
    """lower is served first; a difference of 1 is worth 1 / rate seconds of waiting"""
    price_factor: float = 1.0
    """times the token price of requests that name none"""
    cap: int | None = None
    """requests on their way at once; None: as many as the queue has"""
    reserved: int = 0
    """places that no other class takes"""
    exempt: bool = False
    """whether the tokens of the class are not counted against ``tokens_per_minute``, and its
    price is not raised for them"""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Who waits for whom."""

    capacity: int
    """requests on their way at once"""
    classes: Mapping[str, QueueClass]
    """by the name that requests say in ``priority``"""
    default: str
    """the class of requests that say none"""
    rate: float = 1.0
    """by how much a second of waiting lowers a priority, > 0"""
    waiting: int = 1000
    """requests that may wait; the next is refused"""
    patience: float = 60.0
    """seconds that a request may be expected to wait; one that would wait longer is refused"""
    tokens_per_minute: int | None = None
    """what all classes together may spend, but for those that are exempt; kept by the price"""


def read_price(
    file: TomlFile, audited: float, load: Callable[[str], ImpactModel],
    policies: Mapping[str, StopPolicy],
) -> PriceSettings | None:  # fmt: skip
    """The section ``[price]``; None where there is none.

    ``audited`` is the share of audited requests, ``load`` reads a predictor, which must see what
    the ``policies`` see. Raises ``UserError`` with file and line.
    """
    if "price" not in file.content:
        return None
    said = dict(file.content["price"])

    def wrong(why: str, *key: str) -> UserError:
        return file.wrong(why, "price", *key)

    mode = said.get("mode", "fixed")
    if mode not in get_args(Mode):
        raise wrong(f"mode {mode!r}: it is one of {', '.join(get_args(Mode))}", "mode")
    target: float | None = said.get("target")
    if mode == "fixed" and target is not None:
        raise wrong('a fixed price has no target: leave it out, or say mode = "em-floor"', "target")
    if mode != "fixed" and target is None:
        raise wrong(f"mode {mode} lacks target", "mode")
    if mode == "em-floor" and target is not None and not 0 < target < 1:
        raise wrong(f"target must be an exact match in (0, 1), not {target:g}", "target")
    if mode == "token-budget" and target is not None and not 0 < target < math.inf:
        raise wrong(f"target must be tokens a request, above 0, not {target:g}", "target")
    if mode == "em-floor" and not audited and not said.get("feedback"):
        raise wrong(
            "a floor under exact match is held by what is found out about answers: give [audit] a"
            " share, or say feedback = true",
            "mode",
        )
    for name, least in (("window", 50), ("alarm_every", 1000)):
        if said.get(name, least) < least:
            raise wrong(f"{name} must be at least {least} requests", name)
    if not 0 < said.get("latency", 1) < math.inf:
        raise wrong("latency must be above 0, in seconds", "latency")
    if "predictor" in said:
        said["predictor"] = model = load(said["predictor"])
        if any(model.features != policy.features for policy in policies.values()):
            raise wrong(
                "the predictor sees another observation than the policy: fit it on the policy"
                " (rlbudget predict)",
                "predictor",
            )
    return PriceSettings(**said)


def read_queue(file: TomlFile) -> QueueSettings | None:
    """The section ``[queue]``; None where there is none.

    Raises ``UserError`` with file and line.
    """
    if "queue" not in file.content:
        return None
    said = dict(file.content["queue"])

    def wrong(why: str, *key: str) -> UserError:
        return file.wrong(why, "queue", *key)

    if "capacity" not in said:
        raise wrong("[queue] lacks capacity: requests that the upstream serves at once")
    for name in ("capacity", "waiting", "tokens_per_minute"):
        if said.get(name, 1) < 1:
            raise wrong(f"{name} must be at least 1", name)
    for name in ("rate", "patience"):
        if not 0 < said.get(name, 1) < math.inf:
            raise wrong(f"{name} must be above 0", name)
    given = said.pop("classes", None) or {"default": {}}
    if len(given) > _MOST_CLASSES:
        raise wrong(f"more than {_MOST_CLASSES} classes", "classes")
    classes = {name: _class(file, name, one, said["capacity"]) for name, one in given.items()}
    if sum(one.reserved for one in classes.values()) >= said["capacity"] and len(classes) > 1:
        raise wrong("the classes together reserve the whole capacity", "classes")
    default = said.pop("default", None)
    if default is None:
        default = max(classes, key=lambda name: classes[name].priority)
    elif default not in classes:
        raise wrong(f"no class {default!r}; there are: {', '.join(classes)}", "default")
    return QueueSettings(classes=classes, default=default, **said)


def _class(file: TomlFile, name: str, said: Any, capacity: int) -> QueueClass:
    place = ("queue", "classes", name)
    if not isinstance(said, dict):
        raise file.wrong(f"a class is a section: write [queue.classes.{name}]", *place)
    if not (name.isprintable() and name.strip() == name and 0 < len(name) <= 80):
        raise file.wrong(f"{name!r} is no name of a class", *place)
    for key, value in said.items():
        if key not in CLASS_KEYS:
            there = ", ".join(CLASS_KEYS)
            raise file.wrong(f"{key or repr(key)}: unknown; there are {there}", *place, key)
        kind = CLASS_KEYS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise file.wrong(f"{key} must be {_KINDS[kind]}", *place, key)
    if not math.isfinite(said.get("priority", 0)):
        raise file.wrong("priority must be a finite number", *place, "priority")
    if not 0 < said.get("price_factor", 1) <= 1000:
        raise file.wrong("price_factor must lie in (0, 1000]", *place, "price_factor")
    if not 1 <= said.get("cap", 1) <= capacity:
        raise file.wrong(f"cap must lie between 1 and the capacity, {capacity}", *place, "cap")
    if not 0 <= said.get("reserved", 0) <= said.get("cap", capacity):
        raise file.wrong("reserved must lie between 0 and the cap", *place, "reserved")
    return QueueClass(**said)


def told_of(price: PriceSettings | None, queue: QueueSettings | None) -> list[str]:
    """What the two sections do, a line each, in words."""
    lines = []
    if price is not None and price.mode == "em-floor":
        lines.append(f"serve: the price is steered to keep an exact match of {price.target:g} in"
                     f" windows of {price.window} requests")  # fmt: skip
    if price is not None and price.mode == "token-budget":
        lines.append(f"serve: the price is steered to spend {price.target:g} tokens a request")
    if price is not None and price.latency is not None:
        lines.append(f"serve: the price rises before 95% of the requests take {price.latency:g} s")
    if queue is not None:
        names = sorted(queue.classes, key=lambda name: queue.classes[name].priority)
        lines.append(f"serve: {queue.capacity} requests at once, the others wait by class and age:"
                     f" {', '.join(names)}")  # fmt: skip
        if queue.tokens_per_minute is not None:
            lines.append(f"serve: the price keeps to {queue.tokens_per_minute} tokens a minute")
    return lines
