"""The rules of a training run, each in a run folder of its own within it, ready to freeze."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbudget.agents.clone import TriedRule, best_of, try_rules
from rlbudget.agents.freeze import RULES
from rlbudget.agents.members import Fold
from rlbudget.agents.out_of_fold import OutOfFold, estimate, relative_prices
from rlbudget.agents.snapshot import save_best
from rlbudget.agents.tuned_rule import SCHEDULE, can_freeze, seen_by, tuned_rule, usable
from rlbudget.agents.validation import estimated
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.policy.observation import preset_of
from rlbudget.policy.operating import sweep
from rlbudget.policy.outcomes import Outcome, charged_by, operating_prices, outcome, utility
from rlbudget.policy.prices import price_grid
from rlbudget.traces.table import TraceTable

RULE_PRICES = 13
"""that a rule is tuned to, over the range of prices"""


@dataclass(frozen=True, slots=True)
class AtPrice:
    """A rule as it is tuned to a price."""

    tried: TriedRule
    looks: tuple[str, ...]
    """the features whose looks aside are paid for; none where it never stops below this price"""


def tuned_to(
    table: TraceTable, tried: Sequence[TriedRule], name: str, prices: Sequence[float]
) -> list[AtPrice]:
    """A rule under the parameters that a frozen one may have, tuned to each of rising prices by
    mean utility, never stopping among them.

    Trial answers are made at the same checkpoints at every price from the first on at which it
    stops, and where it never stops beyond that, too: where is best for the prices together.
    """
    free = next(one for one in tried if one.rule.name == "full")
    found: dict[tuple[float, ...], tuple[tuple[str, ...], list[TriedRule]]] = {}
    for one in tried:
        if one.rule.name != name or not usable(name, table, one.parameters):
            continue
        schedule = tuple(one.parameters[part] for part in SCHEDULE.get(name, ()))
        looks = seen_by(name, [one.parameters])
        charged = charged_by(preset_of(looks), table, looks)
        if schedule not in found:
            paid = outcome(table, free.stops, probes_charged=charged)
            found[schedule] = (looks, [replace(free, outcome=paid)])
        paid = outcome(table, one.stops, probes_charged=charged)
        found[schedule][1].append(replace(one, outcome=paid))

    def along(looks: tuple[str, ...], own: Sequence[TriedRule]) -> list[AtPrice]:
        chosen: list[AtPrice] = []
        for price in prices:
            stopped = any(one.looks for one in chosen)
            best = best_of(own if stopped else [free, *own[1:]], price)
            chosen.append(AtPrice(best, () if best is free else _paid(name, best, looks)))
        return chosen

    def worth(chosen: Sequence[AtPrice]) -> float:
        at = zip(chosen, prices, strict=True)
        return sum(float(utility(one.tried.outcome, price).mean()) for one, price in at)

    never = [AtPrice(free, ())] * len(prices)
    return max((along(*one) for one in found.values()), key=worth, default=never)


def _paid(name: str, best: TriedRule, looks: tuple[str, ...]) -> tuple[str, ...]:
    return looks if best.rule.name == "full" else seen_by(name, [best.parameters])


def stops_from(chosen: Sequence[AtPrice], prices: Sequence[float]) -> float | None:
    """The token price below which a rule so tuned never stops; None where it always may."""
    first = next((k for k, one in enumerate(chosen) if one.looks), len(chosen))
    if first == 0:
        return None
    return 2 * prices[-1] if first == len(chosen) else math.sqrt(prices[first - 1] * prices[first])


def save_rules(
    run_dir: Path,
    run: Mapping[str, Any],
    given: OutOfFold,
    parts: Sequence[Fold],
    scaling: Normaliser,
) -> None:
    """A run folder for each rule that can be frozen, within the run folder."""
    table = given.table
    grid = price_grid(scaling.token_price, RULE_PRICES)
    inputs = [float(scaling.price(price)) for price in grid]
    tried = try_rules(table)
    for name in sorted({one.rule.name for one in tried if can_freeze(one.rule.name)}):
        own = tuned_to(table, tried, name, grid)
        tuned = tuned_rule(name, table, [one.tried for one in own], inputs)
        folds = [tuned_to(part.train, part.tried, name, grid) for part in parts]
        at = [_out_of_fold(given, chosen) for chosen in zip(*folds, strict=True)]

        def play(token_price: float, _: float = 0.0, /, at: list[Outcome] = at) -> Outcome:
            return at[int(np.argmin(np.abs(np.log(np.array(grid) / token_price))))]

        swept = sweep(table, operating_prices(scaling.token_price), play)
        found = estimate(replace(given, play=play), relative_prices(table), swept, seed=run["seed"])
        about = {
            **run,
            "preset": preset_of(tuned.features),
            "features": list(tuned.features),
            "config": None,
            "rule": name,
            "stops_from": stops_from(own, grid),
            "validation": estimated(found).as_dict(),
            "out_of_fold": found,
            "swept": {"questions": found["questions"], "prices": [asdict(one) for one in swept]},
        }
        tensors = {part: torch.from_numpy(value) for part, value in tuned.tensors.items()}
        mean, std = (tuned.tensors[part] for part in ("obs_mean", "obs_std"))
        save_best(run_dir / RULES / name, tensors, mean, std, about)


def _out_of_fold(given: OutOfFold, chosen: Sequence[AtPrice]) -> Outcome:
    """A rule at a price, ``chosen`` for each fold on the others, as a policy pays."""

    def of_fold(place: int, own: TraceTable) -> Outcome:
        one = chosen[place]
        charged = charged_by(preset_of(one.looks), own, one.looks) if one.looks else "none"
        stops = one.tried.rule.stops(own, one.tried.parameters)
        return outcome(own, stops, probes_charged=charged)

    return given.together(of_fold)
