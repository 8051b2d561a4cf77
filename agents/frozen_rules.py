"""The rules of a training run, each in a run folder of its own within it, ready to freeze."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbudget.agents.clone import TriedRule, best_of, named, try_rules
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


def paying_as_policy(
    table: TraceTable, tried: Sequence[TriedRule], name: str, prices: Sequence[float]
) -> list[TriedRule]:
    """A rule under the parameters that a frozen one may have, never stopping first, paying as a
    policy does: trial answers where it never stops, too.

    Trial answers are made at the same checkpoints at every price: where is best for the prices
    together, by mean utility.
    """
    own = [one for one in named(tried, name) if one.rule.name == name]
    full = next(one for one in tried if one.rule.name == "full")
    found: dict[tuple[float, ...], list[TriedRule]] = {}
    for one in own:
        if not usable(name, table, one.parameters):
            continue
        features = seen_by(name, [one.parameters])
        charged = charged_by(preset_of(features), table, features)
        schedule = tuple(one.parameters[part] for part in SCHEDULE.get(name, ()))
        if schedule not in found:
            paid = outcome(table, full.stops, probes_charged=charged)
            found[schedule] = [replace(full, outcome=paid)]
        paid = outcome(table, one.stops, probes_charged=charged)
        found[schedule].append(replace(one, outcome=paid))

    def worth(candidates: Sequence[TriedRule]) -> float:
        best = [(best_of(candidates, price).outcome, price) for price in prices]
        return sum(float(utility(one, price).mean()) for one, price in best)

    return max(found.values(), key=worth, default=[full])


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
        own = paying_as_policy(table, tried, name, grid)
        tuned = tuned_rule(name, table, [best_of(own, price) for price in grid], inputs)
        paid = [paying_as_policy(part.train, part.tried, name, grid) for part in parts]
        at = [_out_of_fold(given, paid, name, price) for price in grid]

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
            "validation": estimated(found).as_dict(),
            "out_of_fold": found,
            "swept": {"questions": found["questions"], "prices": [asdict(one) for one in swept]},
        }
        tensors = {part: torch.from_numpy(value) for part, value in tuned.tensors.items()}
        mean, std = (tuned.tensors[part] for part in ("obs_mean", "obs_std"))
        save_best(run_dir / RULES / name, tensors, mean, std, about)


def _out_of_fold(
    given: OutOfFold, paid: Sequence[Sequence[TriedRule]], name: str, price: float
) -> Outcome:
    """A rule with the parameters that are best at a price on the other folds, as a policy pays."""
    best = [best_of(tried, price) for tried in paid]

    def of_fold(place: int, own: TraceTable) -> Outcome:
        chosen = best[place]
        looking = [one.parameters for one in paid[place] if one.rule.name != "full"]
        features = seen_by(name, looking[:1] if chosen.rule.name == "full" else [chosen.parameters])
        charged = charged_by(preset_of(features), own, features)
        return outcome(own, chosen.rule.stops(own, chosen.parameters), probes_charged=charged)

    return given.together(of_fold)
