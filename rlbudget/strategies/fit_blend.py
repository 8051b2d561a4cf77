"""From several policies and traces to a blend in a file: fit, measure, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.console import Advance
from rlbudget.evaluate.unseen import fitted_to, split_seed_of
from rlbudget.evaluate.verdicts import Paired, extremes, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.prices import in_range
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.blend_file import SavedBlend, save_blend, saved_of
from rlbudget.strategies.ensemble import ensemble
from rlbudget.traces.store import digest, load_table
from rlbudget.traces.table import Split, split_questions


@dataclass(frozen=True, slots=True)
class FittedBlend:
    """A blend and what it earns on held-out questions."""

    saved: SavedBlend
    questions: int
    """held out"""
    prices: tuple[float, ...]
    """relative prices that all members serve"""
    utilities: Mapping[str, tuple[float, ...]]
    """way -> mean held-out utility at each of them: every member, the mean, the blend"""
    over_mean: Paired
    """utility of the blend minus that of the mean of chances, over the prices"""
    notes: tuple[str, ...]


def fit_blend_file(
    policies: Mapping[str, Policy],
    traces: Path,
    out: Path,
    *,
    price_factors: Sequence[float] = (),
    progress: Advance | None = None,
) -> FittedBlend:
    """Fit a blend on the policies' training questions, choose on the validation ones, save it.

    One policy with several ``price_factors`` is blended with itself at these prices. The split is
    that of the policies, as in ``rlbudget evaluate``. Raises ``UserError`` as ``fit_blend`` does,
    and for policies of different splits.
    """
    from rlbudget.strategies.blend import fit_blend  # needs sklearn and gymnasium

    known = digest(traces)
    seed, notes = split_seed_of({name: fitted_to(p) for name, p in policies.items()}, known)
    split = split_questions(load_table(traces, context=True), seed=seed)
    names, members = list(policies), list(policies.values())
    if len(members) == 1 and len(price_factors) > 1:
        members = members * len(price_factors)
        names = [f"{names[0]} x {factor:g}" for factor in price_factors]
    factors = list(price_factors) or None
    fitted = fit_blend(
        members, split.train, split.validation, price_factors=factors, progress=progress
    )
    saved = saved_of(fitted, {"digest": known, "split_seed": seed})
    save_blend(out, saved)
    ways: dict[str, StopPolicy] = {
        name: ensemble([member], price_factors=factors and [factors[place]])
        for place, (name, member) in enumerate(zip(names, members, strict=True))
    }
    ways |= {"mean": ensemble(members, price_factors=factors), "blend": fitted}
    return _measured(saved, split, ways, fitted.price_range, tuple(notes))


def _measured(
    saved: SavedBlend,
    split: Split,
    ways: Mapping[str, StopPolicy],
    price_range: tuple[float, float],
    notes: tuple[str, ...],
) -> FittedBlend:
    prices = {relative: token_price_of(relative, split.train) for relative in RELATIVE_PRICES}
    prices = {relative: price for relative, price in prices.items() if in_range(price, price_range)}
    done = {
        name: [replay(way, split.held_out, p).outcome for p in prices.values()]
        for name, way in ways.items()
    }
    each: dict[str, Floats] = {
        name: np.array([utility(one, p) for one, p in zip(of, prices.values(), strict=True)])
        for name, of in done.items()
    }
    both_ends = extremes(split.held_out)
    most = [
        most_utility(p, blend, mean, *both_ends)
        for p, blend, mean in zip(prices.values(), done["blend"], done["mean"], strict=True)
    ]
    ahead = (each["blend"] - each["mean"]).mean(axis=0)
    return FittedBlend(
        saved=saved,
        questions=len(np.unique(split.held_out.question_ids)),
        prices=tuple(prices),
        utilities={name: tuple(map(float, u.mean(axis=1))) for name, u in each.items()},
        over_mean=paired(ahead, split.held_out.question_ids, most=float(np.mean(most))),
        notes=notes,
    )
