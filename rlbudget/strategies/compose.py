"""Strategies over policies, put together in one order: ensemble, then guard, then rules.

The ensemble makes the policies one; the guard refuses stops that are too risky; the rules decide
last, in both directions: where a rule stops, no guard is asked. A policy that a rule names stands
under the same guard. What is composed here is what ``rlbudget decode``
serves and what ``rlbudget evaluate`` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.network import Decision
from rlbudget.policy.replay import Replay
from rlbudget.policy.replay import replay as replay_policy
from rlbudget.strategies.blend import SavedBlend, load_blend
from rlbudget.strategies.ensemble import Combine, ensemble
from rlbudget.strategies.hybrid import HybridRules, RequestFacts
from rlbudget.strategies.impact import ImpactModel, check_risk, guarded
from rlbudget.strategies.impact_file import load_impact
from rlbudget.strategies.rules_file import load_rules
from rlbudget.strategies.steered import AnyPolicy
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace

MAX_RISK = 0.01


@dataclass(frozen=True, slots=True)
class Strategy:
    """What stands over the policies; by default nothing does."""

    combine: Combine | SavedBlend | None = None
    """how several policies, or one at several prices, are one; None for no ensemble"""
    price_factors: tuple[float, ...] = ()
    """times the token price, one a policy; several over one policy are its versions"""
    guard: ImpactModel | None = None
    max_risk: float = MAX_RISK
    """share of stops that may lose an answer, in [0, 1]; for the guard"""
    rules: Path | None = None
    """TOML file of hybrid rules"""

    @property
    def fitted(self) -> dict[str, Mapping[str, Any]]:
        """What its parts were fitted to (``evaluate.unseen.Before``)."""
        found: dict[str, Mapping[str, Any]] = {}
        if self.guard is not None:
            found["guard"] = self.guard.trained
        if isinstance(self.combine, SavedBlend):
            found["blend"] = self.combine.trained
        return found

    def over(
        self, policies: Mapping[str, Policy], traces: Callable[[], Iterable[Trace]]
    ) -> list[Composed]:
        """A method for each stage, to be measured; rules are told what ``traces`` asked."""
        requests = requests_of(traces()) if self.rules else {}
        return [replace(one, requests=requests) for one in stages(policies, self)]


class Served:
    """A composition at work on one request; not to be shared. It decides as the policy does."""

    __slots__ = ("_guard", "_policy", "_seen")

    def __init__(self, policy: AnyPolicy, guard: ImpactModel | None) -> None:
        self._policy, self._guard = policy, guard
        self._seen: npt.ArrayLike | None = None

    def asks(self, token_price: float) -> list[tuple[AnyPolicy, float]]:
        """The policy, at the same price."""
        return [(self._policy, token_price)]

    @property
    def confidence(self) -> float | None:
        """1 - risk where it was last asked: that of the exit, after a stop; None without a guard"""
        if self._guard is None or self._seen is None:
            return None
        return 1 - float(self._guard.risk(self._seen)[0])

    @property
    def preset(self) -> str:
        """That of the policy."""
        return self._policy.preset

    @property
    def features(self) -> tuple[str, ...]:
        """Those of the policy."""
        return self._policy.features

    @property
    def price_range(self) -> tuple[float, float]:
        """That of the policy."""
        return self._policy.price_range

    @property
    def threshold(self) -> float:
        """That of the policy."""
        return self._policy.threshold

    @property
    def recorded(self) -> dict[str, Any]:
        """That of the policy."""
        return self._policy.recorded

    def __call__(self, observation: npt.ArrayLike, *, token_price: float) -> Decision:
        """Decide at one checkpoint."""
        self._seen = observation
        return self._policy(observation, token_price=token_price)

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """Those of the policy."""
        return self._policy.stop_probabilities(observations, token_price)


@dataclass(frozen=True, slots=True)
class Composed:
    """Policies under a strategy."""

    name: str
    """such as ``mean+guard+rules``"""
    policy: AnyPolicy
    """what decides where no rule does"""
    guard: ImpactModel | None = None
    rules: HybridRules | None = None
    requests: Mapping[str, RequestFacts] = field(default_factory=dict)
    """those of recorded traces, by trace id; rules need them in a replay"""

    def asks(self, token_price: float) -> list[tuple[AnyPolicy, float]]:
        """What decides at this price, under each of the rules by itself."""
        if self.rules is None:
            return [(self.policy, token_price)]
        ruled = [self.rules.under([rule]) for rule in self.rules.rules]
        return [(policy, token_price) for policy in (self.policy, *ruled)]

    def serve(self, request: RequestFacts) -> Served:
        """What serves a request: the rules that match it are those that act."""
        policy = self.policy if self.rules is None else self.rules.for_request(request)
        return Served(policy, self.guard)

    def explain(self, request: RequestFacts) -> list[str]:
        """What the rules say to a request, a line each; none without rules."""
        return [] if self.rules is None else self.rules.explain(request)

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest and highest token price it serves."""
        return self.policy.price_range

    def replay(
        self,
        table: TraceTable,
        token_price: float,
        requests: Mapping[str, RequestFacts] | None = None,
    ) -> Replay:
        """Act on recorded traces as live; ``requests`` are its own if left out."""
        if self.rules is None:
            return replay_policy(self.policy, table, token_price)
        known = self.requests if requests is None else requests
        asked = [known[trace_id] for trace_id in table.trace_ids.tolist()]
        return self.rules.replay(table, asked, token_price)


def requests_of(traces: Iterable[Trace]) -> dict[str, RequestFacts]:
    """What rules know of recorded traces, by trace id: question, task and ``meta``."""
    return {t.trace_id: RequestFacts(t.question, t.task, t.meta) for t in traces}


def compose(policies: Mapping[str, Policy], strategy: Strategy) -> Composed:
    """Put a strategy over policies, which rules may name.

    Without an ensemble the first policy decides. Raises ``UserError`` for no policy, for parts
    that do not fit together and for policies that nothing uses.
    """
    if not policies:
        raise UserError("name at least one policy")
    name = next(iter(policies))
    decides: AnyPolicy = policies[name]
    if strategy.combine is not None:
        decides = _combined(list(policies.values()), strategy)
        blended = isinstance(strategy.combine, SavedBlend)
        name = "blend" if blended else str(strategy.combine)
        if name in policies:
            raise UserError(f"a policy is called {name!r} like the ensemble; rename its folder")
    elif strategy.price_factors:
        raise UserError("price factors are for an ensemble: say how to combine, mean or vote")
    elif len(policies) > 1 and strategy.rules is None:
        raise UserError(
            "there are several policies: say how to combine them (mean, vote or the file of a"
            " blend), or give rules that name them"
        )
    named: dict[str, AnyPolicy] = {name: decides, **policies}
    if strategy.guard is not None:
        guard, risk = strategy.guard, strategy.max_risk
        named = {key: guarded(policy, guard, max_risk=risk) for key, policy in named.items()}
    decides = named[name]
    rules = None if strategy.rules is None else load_rules(strategy.rules, named)
    parts = [name]
    parts += ["guard"] if strategy.guard is not None else []
    parts += ["rules"] if rules is not None else []
    return Composed("+".join(parts), decides, strategy.guard, rules)


def stages(policies: Mapping[str, Policy], strategy: Strategy) -> list[Composed]:
    """Every composition to measure, each with one part more than the one before: the ensemble, it
    under the guard, both under the rules.

    Without an ensemble each policy is composed for itself; bare it is not among them. Raises
    ``UserError`` as ``compose`` does.
    """
    together = strategy.combine is not None or bool(strategy.price_factors)
    given = [policies] if together else [{name: policy} for name, policy in policies.items()]
    found: list[Composed] = []
    for members in given:
        if together:
            found.append(compose(members, replace(strategy, guard=None, rules=None)))
        if strategy.guard is not None:
            found.append(compose(members, replace(strategy, rules=None)))
        if strategy.rules is not None:
            found.append(compose({**members, **policies}, strategy))
    return found


def read_strategy(
    *,
    combine: str | None = None,
    price_factors: Sequence[float] = (),
    guard: Path | None = None,
    max_risk: float = MAX_RISK,
    rules: Path | None = None,
) -> Strategy:
    """A strategy from what a command line says; ``combine`` is mean, vote or a blend's file.

    Raises ``UserError`` for a range and for files that are something else.
    """
    check_risk(max_risk)
    how: Combine | SavedBlend | None
    match combine:
        case None | "mean" | "vote":
            how = combine
        case _:
            how = load_blend(combine)
    impact = None if guard is None else load_impact(guard)
    return Strategy(how, tuple(price_factors), impact, max_risk, rules)


def _combined(policies: list[Policy], strategy: Strategy) -> AnyPolicy:
    how, factors = strategy.combine, strategy.price_factors
    if isinstance(how, SavedBlend):
        if factors:
            raise UserError("a blend has its own price factors: leave them out")
        return how.of(policies)
    assert how is not None
    if len(policies) == 1 and len(factors) > 1:
        policies = policies * len(factors)
    return ensemble(policies, combine=how, price_factors=factors or None)
