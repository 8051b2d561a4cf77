"""Hybrid rules: what a policy may not decide alone.

``rlbudget.strategies.rules_file`` reads them from a TOML file; this is what they do.

A rule applies where all of its conditions hold: ``question``, ``task``, ``metadata`` (known when
the request begins), ``tokens`` and ``signal`` (known at each checkpoint). What it does: ``then =
"full"`` (never stop this request), ``then = "go on"`` (not at this checkpoint), ``then = "stop"``
(at this checkpoint), ``min_tokens``, ``max_tokens``, ``price`` (times the token price), ``policy``
(its name). Prices multiply, the largest ``min_tokens`` and the smallest ``max_tokens`` hold, and
the first ``policy`` named is taken. Between rules that disagree, not stopping wins: ``full``, then
``go on`` and ``min_tokens``, then ``stop`` and ``max_tokens``, then the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import charged_by
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import Replay, replay
from rlbudget.strategies.steered import AnyPolicy, SteeredPolicy, steered
from rlbudget.tasks.patterns import Pattern
from rlbudget.traces.table import TraceTable

Then = Literal["full", "go on", "stop"]

UNBOUNDED = float("inf")


@dataclass(frozen=True, slots=True)
class Comparison:
    """``feature sign value``, such as ``entropy_mean > 1.5``."""

    feature: str
    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.feature} {self.sign} {self.value:g}"


@dataclass(frozen=True, slots=True)
class HybridRule:
    """Conditions and what follows where all of them hold."""

    name: str
    line: int
    """where it stands in its file"""
    question: Pattern | None = None
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    live: tuple[Comparison, ...] = ()
    """conditions that are known at each checkpoint"""
    then: Then | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    price: float | None = None
    policy: str | None = None

    def matches(self, request: RequestFacts) -> bool:
        """Whether the conditions known when the request begins hold."""
        return (
            (self.question is None or self.question.found_in(request.question))
            and (self.task is None or self.task == request.task)
            and all(request.metadata.get(k) == value for k, value in self.metadata.items())
        )

    @property
    def effect(self) -> str:
        """What it does, in words."""
        parts: list[str] = [self.then] if self.then else []
        parts += [f"at least {self.min_tokens} tokens"] if self.min_tokens is not None else []
        parts += [f"at most {self.max_tokens} tokens"] if self.max_tokens is not None else []
        parts += [f"token price x {self.price:g}"] if self.price is not None else []
        parts += [f"policy {self.policy}"] if self.policy is not None else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is known when a request begins."""

    question: str
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiveRules:
    """The rules of one request that depend on the checkpoint, compared all at once."""

    places: Ints
    """(comparisons,) in the observation"""
    signs: Floats
    """(comparisons,) 1 where more is wanted, -1 where less is"""
    least: Floats
    """(comparisons,) of the number times the sign, for the comparison to hold"""
    starts: Ints
    """(rules,) first comparison of each; rules that continue come before those that stop"""
    continuing: int
    """how many rules continue"""

    def fired(self, seen: npt.NDArray[Any]) -> tuple[Any, Any]:
        """(n, n_features) -> whether some rule continues, whether some rule stops: (n,) each."""
        holds = seen[:, self.places] * self.signs >= self.least
        fired = np.logical_and.reduceat(holds, self.starts, axis=1)
        return fired[:, : self.continuing].any(axis=1), fired[:, self.continuing :].any(axis=1)

    def first(self, seen: npt.NDArray[Any]) -> bool | None:
        """(n_features,) -> False where some rule continues, True where some stops and none
        continues, None where none says anything."""  # fmt: skip
        holds = seen.take(self.places) * self.signs >= self.least
        place = np.logical_and.reduceat(holds, self.starts).tobytes().find(1)
        return None if place < 0 else place >= self.continuing


def _compile(rules: Sequence[HybridRule], features: Sequence[str]) -> LiveRules | None:
    own = sorted((rule for rule in rules if rule.live), key=lambda rule: rule.then == "stop")
    if not own:
        return None
    at = {name: place for place, name in enumerate(features)}
    comparisons = [comparison for rule in own for comparison in rule.live]
    signs = np.array([1.0 if c.sign[0] == ">" else -1.0 for c in comparisons])
    values = np.array([c.value for c in comparisons]) * signs
    strict = np.array([len(c.sign) == 1 for c in comparisons])
    return LiveRules(
        places=np.array([at[c.feature] for c in comparisons], dtype=np.int64),
        signs=signs,
        least=np.where(strict, np.nextafter(values, np.inf), values),
        starts=np.cumsum([0, *(len(rule.live) for rule in own[:-1])], dtype=np.int64),
        continuing=sum(rule.then != "stop" for rule in own),
    )


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules that match one request make of a policy."""

    policy: AnyPolicy
    price_factor: float
    full: bool
    least: int
    """tokens before which it does not stop"""
    most: float
    """tokens at which it stops"""
    live: LiveRules | None
    tokens_at: int
    """place of ``thinking_tokens`` in the observation"""

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """(n, n_features) -> the chance to stop, (n,).

        The policy is asked only where no rule decides, at the nearest price it knows.
        """
        seen = np.asarray(observations)
        tokens = seen[:, self.tokens_at]
        kept, stopped = tokens < (UNBOUNDED if self.full else self.least), tokens >= self.most
        if self.live is not None:
            kept_here, stopped_here = self.live.fired(seen)
            kept, stopped = kept | kept_here, stopped | stopped_here
        price = self.price(token_price)
        asked = ~(kept | stopped)
        if asked.all():
            return self.policy.stop_probabilities(seen, price)
        chance: Floats = np.where(kept, 0.0, 1.0)
        if asked.any():
            chance[asked] = self.policy.stop_probabilities(seen[asked], price)
        return chance

    def price(self, token_price: float) -> float:
        """At which the policy is asked: the nearest that it knows to the price times the factor."""
        return nearest_price(token_price * self.price_factor, self.policy.price_range)

    def asks(self, token_price: float) -> list[tuple[AnyPolicy, float]]:
        """The policy and its price; nothing where it is never asked."""
        return [] if self.full else [(self.policy, self.price(token_price))]

    def alone(self, observation: Any, token_price: float) -> float:
        """``stop_probabilities`` at one checkpoint, (n_features,)."""
        tokens = observation[self.tokens_at]
        if self.full or tokens < self.least:
            return 0.0
        stops = None if self.live is None else self.live.first(observation)
        if stops is not None or tokens >= self.most:
            return 0.0 if stops is False else 1.0
        price = self.price(token_price)
        return self.policy.alone(observation, price)


@dataclass(frozen=True, slots=True)
class HybridRules:
    """Rules in the order of their file, and the policies they may name."""

    rules: tuple[HybridRule, ...]
    policies: Mapping[str, AnyPolicy]
    """the first one is used where no rule names another"""

    def for_request(self, request: RequestFacts) -> SteeredPolicy:
        """The policy under the rules that match this request."""
        return self.under([rule for rule in self.rules if rule.matches(request)])

    def under(self, matching: Sequence[HybridRule]) -> SteeredPolicy:
        """The policy under these rules."""
        ruling = self.ruling(matching)
        return steered(ruling.policy, ruling)

    def ruling(self, matching: Sequence[HybridRule]) -> Ruling:
        """What these rules make of the policy they name, or of the first one."""
        named = next((rule.policy for rule in matching if rule.policy is not None), None)
        policy = self.policies[next(iter(self.policies)) if named is None else named]
        always = [rule for rule in matching if not rule.live]
        factor = 1.0
        for rule in always:
            factor *= 1.0 if rule.price is None else rule.price
        most = [float(r.max_tokens) for r in always if r.max_tokens is not None]
        return Ruling(
            policy=policy,
            price_factor=factor,
            full=any(rule.then == "full" for rule in always),
            least=max((rule.min_tokens or 0 for rule in always), default=0),
            most=min([*most, *(0.0 for rule in always if rule.then == "stop")], default=UNBOUNDED),
            live=_compile(matching, policy.features),
            tokens_at=policy.features.index("thinking_tokens"),
        )

    def explain(self, request: RequestFacts) -> list[str]:
        """A line for each rule that matches, and one on what follows from all of them."""
        matching = [rule for rule in self.rules if rule.matches(request)]
        lines = []
        for rule in matching:
            where = f" where {' and '.join(map(str, rule.live))}" if rule.live else ""
            lines.append(f"line {rule.line}: {rule.name}: {rule.effect}{where}")
        ruling = self.ruling(matching)
        if ruling.full:
            said = "runs to its natural end"
        else:
            parts = [f"the policy decides at {ruling.price_factor:g} x the token price"]
            parts += [f"from {ruling.least} tokens on"] if ruling.least else []
            parts += [f"stops at {ruling.most:g} tokens"] if ruling.most < UNBOUNDED else []
            said = ", ".join(parts)
        return [*lines, f"so: {said}"]

    def replay(
        self, table: TraceTable, requests: Sequence[RequestFacts], token_price: float
    ) -> Replay:
        """Replay recorded traces, ``requests`` has one for each of them."""
        if len(requests) != len(table):
            raise ValueError(f"{len(requests)} requests for {len(table)} traces")
        groups: dict[tuple[int, ...], list[int]] = {}
        for trace, request in enumerate(requests):
            key = tuple(i for i, rule in enumerate(self.rules) if rule.matches(request))
            groups.setdefault(key, []).append(trace)
        stops: Ints = np.zeros(len(table), dtype=np.int64)
        chance = np.full(len(table.thinking_tokens), np.nan)
        charges = np.zeros(len(table.thinking_tokens))
        for key, members in groups.items():
            ruling = self.ruling([self.rules[i] for i in key])
            ruled = steered(ruling.policy, ruling)
            index = np.asarray(members, dtype=np.int64)
            part = table.take(index)
            done = replay(ruled, part, token_price, observe(part, ruled.features))
            stops[index] = done.stops
            rows = table.rows_of(index)[0]
            chance[rows] = done.chance
            paid = charged_by(ruled.preset, part, ruled.features)
            if not isinstance(paid, str):
                charges[rows] = paid
            elif paid == "until_stop":
                charges[rows] = part.probe_tokens
        return Replay(table, stops, charges, chance)
