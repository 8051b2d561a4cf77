"""A steered price over days of requests: a floor under exact match, difficulty that shifts, drift.

    python -m runs.strategies.adaptive_price --traces FOLDER --changed FOLDER [--days 20]

Replays days of 24,000 requests on the embedded model and on the kept traces of the SmolLM2 reasoner
(``runs/strategies/day.py``): questions the policy was not trained on, drawn anew for each day; at
noon the mix of families turns from easy to hard. The floor is five points below the best that the
afternoon's questions allow. Beside the steered price, which is the gateway's own code: the best
constant price in hindsight, the price that was right before the shift (no control) and a constant
budget of thinking tokens that was right before the shift (fixed threshold).

Then a model change at noon, the mix staying as it is: ``changed_model.py`` records the same model
at another temperature. And quiet days, which nothing changes in. Writes
``runs/results/adaptive_price.json`` and ``adaptive_price.svg``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Floats, Strs
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.policy.outcomes import budget_grid, fixed_stops, outcome
from rlbudget.policy.seen import seen_by, texts_of
from rlbudget.serve.price.control import margin
from rlbudget.serve.price.drift import REFERENCE, after, nothing_seen, ranks_of, reference_of
from rlbudget.serve.price.drift import strength as strength_of
from rlbudget.strategies.correction.doubt import fit_doubt
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.online import PriceSettings
from rlbudget.traces.store import digest, iter_questions, iter_traces, load_table
from rlbudget.traces.table import TraceTable, split_questions
from runs.common import KEPT, KEPT_TRACES, RESULTS, ROOT, row, write_result
from runs.strategies.day import (
    AUDITS,
    DAY,
    FEEDBACK,
    PRICES,
    Lived,
    Served,
    drawn,
    lived,
    served,
    windows,
)

EMBEDDED = ROOT / "runs" / "models" / "embedded" / "policy_0"
WINDOW = 1000
BELOW = 0.05
AUDITED = 0.01
"""share of the requests, on the days whose difficulty shifts"""
QUIET_DAYS = 100
CHANGES = 20
EASY = {"embedded": (8, 4, 2, 1), "SmolLM2": (5, 4, 3, 2, 1)}
"""weights of the families before noon, the easiest first; after noon the hardest"""


@dataclass(frozen=True, slots=True)
class Case:
    """What days are drawn from."""

    name: str
    world: Served
    table: TraceTable
    morning: dict[str, float]
    afternoon: dict[str, float]
    settings: PriceSettings
    start: float
    """price before anything is known: the policy's own default"""
    policy: Policy
    model: ImpactModel


def main() -> None:
    """Replay, write, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--changed", type=Path, required=True)
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--quiet-days", type=int, default=QUIET_DAYS)
    args = parser.parse_args()
    cases = [embedded_case(args.traces), smollm2_case()]
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {"traces_digest": digest(args.traces)}
    shown: dict[str, Any] = {}
    for case in cases:
        found, details[case.name], shown[case.name] = shifting(case, args.days)
        rows += found
    found, details["changed"] = changing(cases[0], args.changed, args.quiet_days)
    write_result("adaptive_price", rows + found, seeds=[7, 1], days=args.days, feedback=FEEDBACK,
                 audits={"shifting": AUDITED, "changed": AUDITS},
                 requests_a_day=DAY, window=WINDOW, **details)  # fmt: skip
    plot(shown)


def embedded_case(traces: Path) -> Case:
    """The kept policy of the embedded model, on questions that it has not seen."""
    policy = load_policy(EMBEDDED)
    table = load_table(traces)
    if policy.seen is not None:
        texts = texts_of(iter_questions(traces, of=table.question_ids))
        known = seen_by(policy.seen, table.question_ids, texts)
        table = table.take(np.flatnonzero(~known))
    split = split_questions(table, validation=0.15, held_out=0.5, seed=0)
    model = fit_doubt(split.train, split.validation, policy, policy.features)
    return _case("embedded", traces, split.held_out, policy, model)


def smollm2_case() -> Case:
    """The kept policy and guard of the SmolLM2 reasoner, on the questions held out of both."""
    split = split_questions(load_table(KEPT_TRACES), seed=0)
    policy = load_policy(KEPT / "policy")
    model = fit_doubt(split.train, split.validation, policy, policy.features)
    return _case("SmolLM2", KEPT_TRACES, split.held_out, policy, model)


def families_of(traces: Path, table: TraceTable) -> Strs:
    """(n,) of each trace."""
    found = {trace.trace_id: str(trace.meta["family"]) for trace in iter_traces(traces)}
    return np.array([found[one] for one in table.trace_ids])


def _case(name: str, traces: Path, table: TraceTable, policy: Policy, model: ImpactModel) -> Case:
    world = served(table, families_of(traces, table), policy, model)
    best = world.right.mean(axis=0).argmax()
    ease = {str(f): float(world.right[world.families == f, best].mean())
            for f in np.unique(world.families)}  # fmt: skip
    order = sorted(ease, key=lambda family: -ease[family])
    morning = dict(zip(order, map(float, EASY[name]), strict=True))
    afternoon = dict(zip(order[::-1], map(float, EASY[name]), strict=True))
    floor = round(float(_mean(world, world.right, afternoon).max()) - BELOW, 3)
    settings = PriceSettings("em-floor", floor, window=WINDOW)
    return Case(
        name, world, table, morning, afternoon, settings, policy.default_price, policy, model
    )


def _mean(world: Served, values: Floats, weights: dict[str, float]) -> Floats:
    """(``PRICES`` + 1,) mean over the families by their weights."""
    total = sum(weights.values())
    means = [share / total * values[world.families == f].mean(axis=0)
             for f, share in weights.items()]  # fmt: skip
    found: Floats = np.sum(means, axis=0)
    return found


def shifting(case: Case, days: int) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Days whose difficulty shifts at noon."""
    generator = np.random.default_rng(7)
    world, floor = case.world, float(case.settings.target or 0)
    halves = [case.morning, case.afternoon]
    drawn_days = [drawn(world, halves, generator) for _ in range(days)]
    none = np.zeros(DAY, dtype=np.int64)
    steered = [lived([world], none, one, case.settings, case.start, generator, audited=AUDITED)
               for one in drawn_days]  # fmt: skip

    def below(rights: Sequence[Floats]) -> float:
        return float(np.mean([windows(one, WINDOW) < floor for one in rights]))

    constant = [
        (below([world.right[one, place] for one in drawn_days]),
         float(np.mean([world.tokens[one, place].mean() for one in drawn_days])), place)
        for place in range(PRICES + 1)
    ]  # fmt: skip
    lawful = [one for one in constant if one[0] <= 0.05] or [min(constant)]
    best = min(lawful, key=lambda one: one[1])
    before = _mean(world, world.right, case.morning) >= floor + margin(case.settings)
    place = int(np.flatnonzero(before)[np.argmin(
        _mean(world, world.tokens, case.morning)[before])])  # fmt: skip
    fixed = _budget(case, floor)
    ours = below([one.right for one in steered])
    tokens = float(np.mean([one.tokens.mean() for one in steered]))
    unaudited = float(np.mean([
        np.where(one.full, one.tokens, _cut(world, day, one)).mean()
        for day, one in zip(drawn_days, steered, strict=True)
    ]))  # fmt: skip
    full = float(np.mean([world.tokens[one, PRICES].mean() for one in drawn_days]))
    budget_rights = [fixed[0][one] for one in drawn_days]
    budget_tokens = float(np.mean([fixed[1][one].mean() for one in drawn_days]))
    alarms = [len(one.alarms) for one in steered]
    rows = [
        row(f"{case.name}: {days} days, difficulty shifting at noon: windows of {WINDOW} requests"
            f" below the floor of {floor:g}", "<= 5%",
            f"{ours:.1%} (best constant price in hindsight {best[0]:.1%}; no control: the price"
            f" that was right before noon {constant[place][0]:.1%}; fixed threshold: the budget of"
            f" {fixed[2]:g} thinking tokens that was right before noon"
            f" {below(budget_rights):.1%}; alarms a day {np.mean(alarms):.2f})", ours <= 0.05),
        row(f"{case.name}: tokens a request against the best constant price in hindsight",
            "within 10%",
            f"{tokens:.1f} against {best[1]:.1f} ({tokens / best[1] - 1:+.1%}; {unaudited:.1f}"
            f" without the audits, {unaudited / best[1] - 1:+.1%}; no control"
            f" {constant[place][1]:.1f}, fixed threshold {budget_tokens:.1f}, full decodes"
            f" {full:.1f})", tokens <= 1.1 * best[1]),
    ]  # fmt: skip
    details = {
        "floor": floor, "start": case.start, "best_constant": {"price": _price(world, best[2]),
        "below": best[0], "tokens": best[1]}, "no_control": {"price": _price(world, place),
        "below": constant[place][0], "tokens": constant[place][1]},
        "fixed_threshold": {"budget": fixed[2], "below": below(budget_rights),
                            "tokens": budget_tokens},
        "steered": {"below": ours, "tokens": tokens, "tokens_without_audits": unaudited,
                    "alarms": [list(one.alarms) for one in steered]},
        "full_tokens": full,
    }  # fmt: skip
    first = drawn_days[0]
    picture = {
        "floor": floor, "steered": steered[0],
        "no control": (world.right[first, place], world.tokens[first, place]),
        "fixed threshold": (fixed[0][first], fixed[1][first]),
        "best constant price": (world.right[first, best[2]], world.tokens[first, best[2]]),
    }  # fmt: skip
    return rows, details, picture


def _price(world: Served, place: int) -> float | None:
    return None if place == PRICES else float(world.prices[place])


def _cut(world: Served, requests: Any, one: Lived) -> Floats:
    """Tokens as if nothing had been audited."""
    logs = np.log(world.prices)
    places = np.abs(np.log(one.prices)[:, None] - logs[None]).argmin(axis=1)
    found: Floats = world.tokens[requests, places]
    return found


def _budget(case: Case, floor: float) -> tuple[Floats, Floats, float]:
    """The smallest constant budget that was right before noon: exact match and tokens of each."""
    world, table = case.world, case.table
    for budget in sorted(budget_grid(table)):
        found = outcome(table, fixed_stops(table, budget))
        right = float(_mean(world, found.exact_match[:, None], case.morning)[0])
        if right >= floor + margin(case.settings):
            break
    return found.exact_match, found.tokens, budget


def changing(
    case: Case, changed: Path, quiet_days: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A model change at noon of days that are otherwise quiet, and quiet days."""
    generator = np.random.default_rng(1)
    even = dict.fromkeys(case.morning, 1.0)
    table = load_table(changed)
    other = served(table, families_of(changed, table), case.policy, case.model)
    best = _mean(case.world, case.world.right, even)
    floor = round(float(best.max()) - BELOW, 3)
    settings = replace(case.settings, target=floor)
    noon = DAY // 2
    days = []
    for _ in range(CHANGES):
        requests = drawn(case.world, [even], generator)
        requests[noon:] = drawn(other, [even], generator)[noon:]
        which = (np.arange(DAY) >= noon).astype(np.int64)
        worlds = [case.world, other]
        days.append((requests, lived(worlds, which, requests, settings, case.start, generator)))
    # What the change costs where the service stands at noon.
    logs = np.log(case.world.prices)
    places = [int(np.abs(logs - np.log(one.prices[noon])).argmin()) for _, one in days]
    cost = float(np.mean([best[p] - _mean(other, other.right, even)[p] for p in places]))
    delays = [next((k - noon + 1 for k, _ in one.alarms if k >= noon), None) for _, one in days]
    early = sum(k < noon for _, one in days for k, _ in one.alarms)
    in_full = [bool(one.full[noon : noon + WINDOW].any()) for _, one in days]
    full_by = [int(np.argmax(one.full[noon:])) for _, one in days]
    back = [_back(one.full[noon:]) for _, one in days]
    after_change = [windows(one.right[noon:], WINDOW) for _, one in days]
    missed = float(np.mean([one < floor for one in after_change]))
    late = float(np.mean([one[-4:] for one in after_change]))
    full_em = float(_mean(other, other.right, even)[PRICES])
    alarms, share = quiet(case, even, settings, quiet_days, generator)
    per_hundred = alarms / quiet_days * 100
    known = [d for d in delays if d is not None]
    rows = [
        row(f"embedded: a model change at noon that costs {100 * cost:.1f} points (another"
            f" temperature), {CHANGES} days: requests to the alarm at {AUDITS:.0%} audits",
            "<= 300 in each, false alarms <= 1 in 100 quiet days",
            f"{np.median(known) if known else float('nan'):.0f} in the median, {max(known):.0f} at"
            f" most, {len(known)} of {CHANGES} days; false alarms {per_hundred:.1f} in 100 quiet"
            f" days (of {quiet_days}), {early} before the changes",
            len(known) == CHANGES and max(known) <= 300 and per_hundred <= 1 and not early),
        row("embedded: full decoding after the model change", f"within one window ({WINDOW})",
            f"{sum(in_full)} of {CHANGES} days, after {max(full_by)} requests at most; back to"
            f" stopping early {np.median(back):.0f} requests after the alarm in the median,"
            f" {max(back)} at most; {missed:.1%} of the windows after the change below the floor of"
            f" {floor:g}, exact match {late:.3f} in the last four hours (full decodes of the"
            f" changed model {full_em:.3f})", all(in_full)),
    ]  # fmt: skip
    details = {
        "floor": floor, "cost": cost, "delays": delays, "back": back, "missed_after": missed,
        "quiet": {"days": quiet_days, "alarms": alarms, "highest_evidence_share": share},
        "changed_digest": digest(changed),
    }  # fmt: skip
    return rows, details


def _back(full: Any) -> int:
    """Requests in full."""
    return int(full.sum())


def quiet(
    case: Case, even: dict[str, float], settings: PriceSettings, days: int,
    generator: np.random.Generator,
) -> tuple[int, float]:  # fmt: skip
    """Alarms on quiet days, whose signals are watched side by side: each learns its own reference.

    The second number is the highest evidence seen, as a share of what is an alarm.
    """
    world, alarms, highest = case.world, 0, 0.0
    references, ranks = [], []
    for _ in range(days):
        first = drawn(world, [even], generator, REFERENCE)
        found = reference_of([world.openings[k] for k in first])
        references.append(found)
        ranks.append(np.array([ranks_of(found, one) for one in world.openings]))
    same = [len(r.names) for r in references]
    for numbers in sorted(set(same)):
        chosen = [k for k, n in enumerate(same) if n == numbers]
        spread = np.array([references[k].spread for k in chosen])
        together = replace(references[chosen[0]], spread=spread)
        evidence = np.stack([nothing_seen(references[k]) for k in chosen])
        own = np.stack([ranks[k] for k in chosen])
        requests = np.stack([drawn(world, [even], generator, DAY - REFERENCE) for _ in chosen])
        over = np.zeros(len(chosen), dtype=bool)
        for k in range(requests.shape[1]):
            evidence = after(together, evidence, own[np.arange(len(chosen)), requests[:, k]])
            strong = strength_of(evidence)
            highest = max(highest, float(strong.max()) / settings.alarm_every)
            over |= strong >= settings.alarm_every
        alarms += int(over.sum())
    return alarms, highest


def plot(shown: dict[str, Any]) -> None:
    """Exact match of each window and tokens over the day, steered and not."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rlbudget"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(shown), figsize=(10, 6), sharex=True, squeeze=False)
    hours = (np.arange(DAY // WINDOW) + 0.5) * WINDOW / DAY * 24
    for column, (name, picture) in enumerate(shown.items()):
        upper, lower = axes[0, column], axes[1, column]
        steered = picture["steered"]
        lines = {"steered price": (steered.right, steered.tokens)} | {
            key: picture[key] for key in ("no control", "fixed threshold", "best constant price")
        }
        for key, (right, tokens) in lines.items():
            wide = 2.2 if key == "steered price" else 1.0
            upper.plot(hours, windows(right, WINDOW), label=key, linewidth=wide)
            lower.plot(hours, windows(tokens, WINDOW), linewidth=wide)
        upper.axhline(picture["floor"], color="black", linestyle=":", label="floor")
        upper.set_title(f"{name}: the mix turns hard at noon")
        upper.set_ylabel("exact match of an hour")
        lower.set_ylabel("tokens a request, audits included")
        lower.set_xlabel("hour")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "adaptive_price.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
