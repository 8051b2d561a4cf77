"""What a policy's operating points promise, beside what they give on held-out questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlbudget.evaluate.needed import needed
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import Resampling
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.replay import replay
from rlbudget.traces.table import TraceTable


def effort_rows(
    policies: Mapping[str, Policy], held_out: TraceTable, resampling: Resampling
) -> list[dict[str, Any]]:
    """A row for each effort of each policy that has points: the point, as its folder holds it,
    with ``held_out_em_loss``, its 95% interval, ``held_out_savings`` and ``needed.needed``."""
    full = outcome(held_out, full_stops(held_out))
    rows = []
    for name, policy in policies.items():
        seen = observe(held_out, policy.features) if policy.operating_points else None
        for effort, point in policy.operating_points.items():
            price = float(point["token_price"])
            stopped = replay(policy, held_out, price, seen).outcome if price else full
            lost = full.exact_match - stopped.exact_match
            # To never stop loses nothing by definition.
            ends = mean_interval(resampling, lost, low=-1.0, high=1.0) if price else (0.0, 0.0)
            more = needed(resampling, lost) if price else {"to_halve": None, "to_a_point": None}
            rows.append(
                {
                    "method": name,
                    "effort": effort,
                    **point,
                    **more,
                    "held_out_em_loss": float(lost.mean()),
                    "held_out_em_loss_ci95": ends,
                    "held_out_savings": 1 - float(stopped.tokens.mean() / full.tokens.mean()),
                }
            )
    return rows
