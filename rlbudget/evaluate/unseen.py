"""Which split of traces keeps what somebody was fitted to out of the held-out questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy


def fitted_to(policy: Policy) -> Mapping[str, Any]:
    """What a policy was trained on: ``digest`` of the traces and ``split_seed``, where known."""
    traces: Mapping[str, Any] = policy.config["trained"].get("traces") or {}
    return traces


def split_seed_of(
    fitted: Mapping[str, Mapping[str, Any]], these: str, seed: int = 0
) -> tuple[int, list[str]]:
    """The seed of the split under which nothing has seen a held-out question, and notes.

    ``fitted`` says of each policy, guard or blend what it was fitted to, ``these`` is the digest
    of the traces to split; ``seed`` is taken where none was fitted to them. Raises ``UserError``
    for those that were and do not say how the traces were split, or not alike.
    """
    seeds: dict[str, int] = {}
    notes = []
    for name, traces in fitted.items():
        if traces.get("digest") != these:
            notes.append(
                f"{name}: trained on other traces; if they shared questions with these, its"
                " numbers are too good"
            )
        elif traces.get("split_seed") is None:
            raise UserError(
                f"policy {name} was trained on these traces but does not say how they were split,"
                " so no question is known to be held out; train it with rlbudget train"
            )
        else:
            seeds[name] = int(traces["split_seed"])
    if len(set(seeds.values())) > 1:
        said = ", ".join(f"{name}: {value}" for name, value in seeds.items())
        raise UserError(
            f"the policies were trained on different splits of these traces (--split-seed {said});"
            " take those of one split"
        )
    return next(iter(seeds.values()), seed), notes
