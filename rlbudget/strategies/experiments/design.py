"""What an experiment is: its arms, whom it is drawn by, its margins and its size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from rlbudget.errors import UserError
from rlbudget.policy.dial import DIALS, Dial

By = Literal["request", "user"]
Measure = Literal["outcome", "agreement"]
LEAST_WEIGHT = 0.01
"""of an arm, as a share of all"""
MOST_ARMS = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_PAIR = re.compile(r"[^=]+=.*", re.DOTALL)
_NUMBER = (int, float)
ARM_KEYS: Mapping[str, Any] = {
    "name": str, "weight": _NUMBER, "plan": str, "token_price": _NUMBER, "effort": str,
    "max_em_loss": _NUMBER, "thinking_budget": int, "off": bool,
}  # fmt: skip
KEYS: Mapping[str, Any] = {
    "name": str, "arms": list, "by": str, "share": _NUMBER, "exclude": list, "margin": _NUMBER,
    "satisfaction_margin": _NUMBER, "confidence": _NUMBER, "measure": str, "size": int,
    "most_tokens": int, "usual_tokens": _NUMBER, "promote": bool,
}  # fmt: skip
_KINDS = {str: "a text", list: "a list", int: "a whole number", bool: "true or false",
          _NUMBER: "a number"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of serving; what it leaves out is the plan's."""

    name: str
    weight: float = 1.0
    plan: str | None = None
    """name of another plan of the gateway, or the file of one"""
    token_price: float | None = None
    effort: str | None = None
    max_em_loss: float | None = None
    thinking_budget: int | None = None
    """cap on thinking tokens"""
    off: bool = False
    """full decoding: the request passes through"""

    @property
    def dial(self) -> Dial:
        """Its operating point; silent where it names none."""
        return Dial(token_price=self.token_price, effort=self.effort, max_em_loss=self.max_em_loss)


@dataclass(frozen=True, slots=True)
class Design:
    """An experiment as it is declared before its first request."""

    name: str
    arms: tuple[Arm, ...]
    """the first is the control"""
    by: By = "request"
    """what an arm is drawn by: the same question, or the same user, always gets the same arm"""
    share: float = 1.0
    """of the eligible units that take part"""
    exclude: tuple[str, ...] = ()
    """``key=value`` of the metadata of requests that do not"""
    margin: float = 0.02
    """exact match that an arm may lose against the control"""
    satisfaction_margin: float = 0.05
    """satisfaction, in [0, 1], that it may lose"""
    confidence: float = 0.95
    """chance that all intervals of the experiment hold, however often one looks"""
    measure: Measure = "outcome"
    """exact match by what was found out about audited answers; or by their agreement with the full
    decode, which needs no outcome and bounds the loss from above"""
    size: int = 50_000
    """audited units of an arm and the control together, after which an undecided arm is stopped"""
    most_tokens: int = 32_768
    """tokens of a request count for at most so many"""
    usual_tokens: float = 0.0
    """what a request usually takes: nearer to it, narrower intervals"""
    promote: bool = False
    """whether an arm that has won is served to all by itself"""

    @property
    def control(self) -> Arm:
        """What the others are compared with."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """By its name; ``UserError`` where there is none."""
        for one in self.arms:
            if one.name == name:
                return one
        there = ", ".join(one.name for one in self.arms)
        raise UserError(f"{self.name}: no arm {name!r}; there are: {there}")

    def named(self) -> Design:
        """With the plans of its arms by the names of the arms, as a gateway knows them."""
        arms = (arm if arm.plan is None else replace(arm, plan=arm.name) for arm in self.arms)
        return replace(self, arms=tuple(arms))

    @property
    def each(self) -> float:
        """The confidence of each interval: three metrics of every arm hold together."""
        return 1 - (1 - self.confidence) / (3 * (len(self.arms) - 1))


@dataclass(frozen=True, slots=True)
class Drawn:
    """An arm, and the chance with which it was drawn."""

    arm: Arm
    propensity: float


def draw(design: Design, unit: str, live: Sequence[str]) -> Drawn | None:
    """The arm of a unit, always the same one; None where it takes no part.

    ``live`` names the arms that are not stopped: who was in a stopped one is drawn again among
    them, and everybody else stays.
    """
    if _uniform(f"{design.name}\0share\0{unit}") >= design.share:
        return None
    all_of = sum(arm.weight for arm in design.arms)
    left = [arm for arm in design.arms if arm.name in live]
    if not left:
        return None
    weights = sum(arm.weight for arm in left)
    found = _pick(design.arms, all_of, _uniform(f"{design.name}\0arm\0{unit}"))
    if found not in left:
        found = _pick(left, weights, _uniform(f"{design.name}\0again\0{unit}"))
    return Drawn(found, found.weight / weights)


def _pick(arms: Sequence[Arm], weights: float, place: float) -> Arm:
    reached = 0.0
    for arm in arms:
        reached += arm.weight / weights
        if place < reached:
            return arm
    return arms[-1]


def _uniform(text: str) -> float:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


Wrong = Callable[..., NoReturn]
"""raises the error for what stands at a path: ``wrong(why, *path)``"""


def design_of(said: Mapping[str, Any], wrong: Wrong) -> Design:
    """A design from a table of a plan or a command line; ``wrong`` says where a mistake is."""
    for key, value in said.items():
        _check(KEYS, key, value, wrong, key)
    given = {key: value for key, value in said.items() if key != "arms"}
    arms = []
    for place, one in enumerate(said.get("arms", ())):
        if not isinstance(one, Mapping):
            wrong("an arm is a table: {name = …}", "arms", place)
        for key, value in one.items():
            _check(ARM_KEYS, key, value, wrong, "arms", place, key)
        arms.append(_arm(one, wrong, place))
    names = [arm.name for arm in arms]
    if not 2 <= len(arms) <= MOST_ARMS:
        wrong(f"arms: 2 to {MOST_ARMS}, the control first", "arms")
    if len(set(names)) < len(names):
        wrong("arms: each needs a name of its own", "arms")
    least = LEAST_WEIGHT * sum(arm.weight for arm in arms)
    for place, arm in enumerate(arms):
        if arm.weight < least:
            wrong(f"weight: at least {LEAST_WEIGHT:.0%} of all", "arms", place, "weight")
    if not _NAME.fullmatch(str(given.setdefault("name", "experiment"))):
        wrong("name: letters, digits and . _ - alone", "name")
    _check_numbers(given, wrong)
    if given.get("by", "request") not in ("request", "user"):
        wrong('by: "request" or "user"', "by")
    if given.get("measure", "outcome") not in ("outcome", "agreement"):
        wrong('measure: "outcome" or "agreement"', "measure")
    for place, pair in enumerate(given.get("exclude", ())):
        if not isinstance(pair, str) or not _PAIR.fullmatch(pair):
            wrong('exclude: a list of "key=value"', "exclude", place)
    given["exclude"] = tuple(given.get("exclude", ()))
    return Design(**{**given, "arms": tuple(arms)})


def _arm(said: Mapping[str, Any], wrong: Wrong, place: int) -> Arm:
    if not _NAME.fullmatch(str(said.get("name", ""))):
        wrong("an arm needs a name of letters, digits and . _ -", "arms", place)
    weight = said.get("weight", 1.0)
    if not 0 < weight < 1e6:
        wrong("weight must be above 0", "arms", place, "weight")
    if said.get("thinking_budget", 1) < 1:
        wrong("thinking_budget: at least 1 token", "arms", place, "thinking_budget")
    dials = [key for key in DIALS if key in said]
    if len(dials) > 1 or (said.get("off") and dials):
        wrong(f"an arm names one of {', '.join(DIALS[:3])}, off", "arms", place, dials[-1])
    arm = Arm(**said)
    try:
        _ = arm.dial
    except UserError as error:
        wrong(str(error), "arms", place, *dials)
    return arm


def _check(known: Mapping[str, Any], key: str, value: Any, wrong: Wrong, *path: str | int) -> None:
    if key not in known:
        wrong(f"{key}: unknown; there are {', '.join(known)}", *path)
    kind = known[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wrong(f"{key} must be {_KINDS[kind]}", *path)


def _check_numbers(given: Mapping[str, Any], wrong: Wrong) -> None:
    for key, low, high in (
        ("share", 0, 1), ("margin", 0, 1), ("satisfaction_margin", 0, 1), ("confidence", 0.5, 1),
        ("size", 1, 1e9), ("most_tokens", 1, 1e9), ("usual_tokens", -1, 1e9),
    ):  # fmt: skip
        value = given.get(key)
        if value is None:
            continue
        inside = low < value <= high if key in ("share", "most_tokens") else low < value < high
        if not inside:
            wrong(f"{key} must lie between {max(low, 0):g} and {high:g}", key)


@dataclass(frozen=True, slots=True)
class ArmStatus:
    """What became of an arm."""

    status: Literal["live", "stopped", "promoted"] = "live"
    why: str = ""
    at: str = ""
    """UTC, ISO 8601"""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A design, and what became of it."""

    design: Design
    started: str
    """UTC, ISO 8601"""
    status: Literal["running", "stopped", "promoted"] = "running"
    why: str = ""
    arms: Mapping[str, ArmStatus] = field(default_factory=dict)

    @property
    def live(self) -> tuple[str, ...]:
        """The arms that are not stopped, the control first."""
        return tuple(
            arm.name for arm in self.design.arms
            if self.arms.get(arm.name, ArmStatus()).status == "live"
        )  # fmt: skip
