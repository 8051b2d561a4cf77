"""The learners PPO is compared with, fitted on the same traces, observations and prices."""

from __future__ import annotations

from collections.abc import Sequence

from rlbudget.agents import exact_pg
from rlbudget.agents.config import RELATIVE_PRICE_RANGE
from rlbudget.agents.fitted_q import fit_q
from rlbudget.console import Advance, quiet
from rlbudget.evaluate.measure import Learned
from rlbudget.policy.observation import Preset
from rlbudget.policy.outcomes import RELATIVE_PRICES, doublings, token_price_of
from rlbudget.traces.table import Split


def fit_learners(
    split: Split,
    presets: Sequence[Preset] = ("free",),
    *,
    seed: int = 0,
    steps: int = 1000,
    highest: float = RELATIVE_PRICE_RANGE[1],
    progress: Advance = quiet,
) -> dict[str, Learned]:
    """``fitted-q`` and ``exact-pg`` for each preset; with ``-probe`` at the end for that one.

    ``steps`` are those of the exact gradient, ``highest`` is the relative price up to which both
    are fitted. The held-out traces of the split are not looked at.
    """
    fitted: dict[str, Learned] = {}
    tables = split.train, split.validation
    relative = [*RELATIVE_PRICES, *doublings(highest)]
    prices = [token_price_of(one, split.train) for one in relative]
    low, high = (token_price_of(one, split.train) for one in (RELATIVE_PRICE_RANGE[0], highest))
    for preset in presets:
        end = "" if preset == "free" else f"-{preset}"
        progress(len(fitted), 2 * len(presets))
        fitted[f"fitted-q{end}"] = fit_q(*tables, prices, preset=preset, seed=seed)
        progress(len(fitted), 2 * len(presets))
        fitted[f"exact-pg{end}"] = exact_pg.maximise(
            *tables, token_price=(low, high), preset=preset, steps=steps, seed=seed
        )
    progress(len(fitted), len(fitted))
    return fitted
