"""The evaluation of a folder of traces: what ``rlbudget evaluate`` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rlbudget import console
from rlbudget.errors import UserError
from rlbudget.evaluate.about import about
from rlbudget.evaluate.efforts import effort_rows
from rlbudget.evaluate.evaluation import as_json
from rlbudget.evaluate.figure import draw_frontier
from rlbudget.evaluate.folds import add_spread, assess_folds, assess_split
from rlbudget.evaluate.measure import Composition
from rlbudget.evaluate.needed import add_needed
from rlbudget.evaluate.present import SHOWN_RELATIVE_PRICE, at_shown_price, shown, table_text
from rlbudget.evaluate.recommendation import recommended
from rlbudget.evaluate.report import Cases, cases_of, write_report
from rlbudget.evaluate.unseen import fitted_to, split_unseen
from rlbudget.evaluate.worth import rates_of, served, worth
from rlbudget.files import json_ready, write_text
from rlbudget.policy.card import write_card
from rlbudget.policy.dial import uncovered
from rlbudget.policy.folder import Policy, load_policy, policy_folders
from rlbudget.policy.prices import nearest_price
from rlbudget.traces.agreement import FIELD, SAID
from rlbudget.traces.compared import compared_with
from rlbudget.traces.sampling import MOST_MEASURED, load_sample
from rlbudget.traces.store import Folders, iter_traces
from rlbudget.traces.table import TraceTable, joined
from rlbudget.traces.trace import Trace


class Strategies(Protocol):
    """What stands over the policies, put together by whoever knows the strategies."""

    @property
    def fitted(self) -> Mapping[str, Mapping[str, Any]]:
        """What its parts were fitted to (``unseen.Before``)."""

    def over(
        self, policies: Mapping[str, Policy], traces: Callable[[], Iterable[Trace]]
    ) -> Sequence[Composition]:
        """A method for each of its parts; ``traces`` are read where rules ask for requests."""


def evaluate_folder(
    traces: Folders,
    *,
    policies: Sequence[Path] = (),
    out: Path,
    seed: int = 0,
    draws: int = 2000,
    write_cards: bool = False,
    learners: bool = False,
    folds: int = 1,
    strategy: Strategies | None = None,
    last: int | None = None,
    as_they_are: bool = False,
    price_per_million: str | float | None = None,
    tokens_per_second: float | None = None,
) -> dict[str, Any]:
    """Measure every rule and the policies in these folders on held-out questions.

    Held out are the questions that were when the policies were trained on these traces, without
    those that one of them or an ancestor of it has seen; where none has seen any, the split is
    that of ``seed``. Writes ``evaluation.json``, ``table.txt``,
    ``report.html``, ``frontier.png`` and ``frontier.svg`` into ``out``, prints the table and
    returns what ``evaluation.json`` holds. ``write_cards`` puts each policy's rows into the card
    of its folder. ``learners`` also fits the learners PPO is compared with: a logistic
    head, fitted-Q and the exact policy gradient. With ``folds`` above 1 every question is held out
    once and the policies are trained anew in each fold, with the settings of the ones given, or
    measured ``as_they_are``; ``last`` then restricts what is measured to the latest traces.
    ``strategy`` adds a method for each of its parts (``rlbudget.strategies.compose``). What a
    million output tokens cost ("$0.60", 0.6) and how many come in a second make money and time of
    what the recommendation saves.
    Raises ``UserError`` for traces and policies that cannot be measured together.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}: the bootstrap needs at least 1, better 2000")
    if folds < 1 or (folds > 1 and write_cards):
        raise UserError(
            f"folds is {folds}: it must be at least 1, and a card is written with 1 only, because"
            " folds measure other policies than the one in the folder"
        )
    if folds == 1 and (last is not None or as_they_are):
        raise UserError("last and as-they-are are for several folds: add --folds K")
    rates = rates_of(price_per_million, tokens_per_second)
    folders = policy_folders(policies)
    loaded = {name: load_policy(folder) for name, folder in folders.items()}
    composed = [] if strategy is None else strategy.over(loaded, lambda: iter_traces(traces))
    if composed and folds > 1:
        raise UserError("a strategy is measured with folds 1 only: what it holds is fitted once")
    cases: dict[str, Cases] = {}
    held_out: TraceTable | None = None
    if folds > 1:
        with console.progress("Evaluating folds") as advance:
            assessment = assess_folds(
                traces, loaded, folds=folds, last=last, as_they_are=as_they_are,
                learners=learners, seed=seed, draws=draws, progress=advance,
            )  # fmt: skip
        evaluation = as_json(assessment)
        add_spread(evaluation, assessment.parts)
        how = "trained anew in each fold"
        if as_they_are:
            how = "as it is; of questions it was trained on its numbers are too good"
        split_seed, notes = seed, [f"{name}: {how}" for name in loaded]
    else:
        fitted = {name: fitted_to(policy) for name, policy in loaded.items()}
        fitted |= {} if strategy is None else dict(strategy.fitted)
        sample = load_sample(traces, context=True, most=MOST_MEASURED)
        table = sample.table
        unseen = split_unseen(table, traces, fitted, seed)
        split, split_seed, notes = unseen.split, unseen.seed, unseen.notes
        held_out = split.held_out
        assessment = assess_split(
            split, joined([split.train, split.validation]), loaded, learners=learners, seed=seed,
            draws=draws, compositions=composed, show=console.progress,
        )  # fmt: skip
        evaluation = as_json(assessment)
        efforts = effort_rows(loaded, split.held_out, assessment.resampling)
        evaluation["efforts"] = json_ready(efforts)
        cases = _cases(traces, split.held_out, loaded, evaluation)
        evaluation["contexts"] = {
            name: [asdict(group) for group in found.contexts] for name, found in cases.items()
        }
        notes += [sample.said] if sample.said else []
    notes += _beyond({**loaded, **{one.name: one for one in composed}}, evaluation)
    compared = compared_with(traces)
    if compared is not None:
        evaluation[FIELD] = compared
        notes = [SAID, *notes]
    add_needed(evaluation, assessment)
    evaluation["frozen_rules"] = {
        name: rule for name, policy in loaded.items() if (rule := _rule_of(policy))
    }
    evaluation["recommendation"] = recommended(evaluation)
    evaluation["about"] = about(assessment.methods, loaded)
    way = served(evaluation, assessment, loaded, held_out)
    evaluation |= json_ready(worth(way, assessment.full, assessment.resampling, rates))
    evaluation["split_seed"] = split_seed
    evaluation["notes"] = notes
    write_text(out / "evaluation.json", json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.txt", table_text(evaluation))
    draw_frontier(evaluation, out)
    write_report(out / "report.html", evaluation, cases, SHOWN_RELATIVE_PRICE)
    if write_cards:
        for name, folder in folders.items():
            write_card(folder, evaluation, method=name)
    console.show(shown(evaluation))
    console.note(
        f"Written to {out}: report.html, evaluation.json, table.txt, frontier.png, frontier.svg"
    )
    return evaluation


def _rule_of(policy: Policy) -> str | None:
    """The rule that it was frozen from."""
    found: str | None = (policy.config.get("trained") or {}).get("rule")
    return found


def _beyond(methods: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """A note for each method that is measured at prices which its certificate does not cover."""
    notes = []
    for name, method in methods.items():
        rows = {
            f"{row['relative_price']:g}": uncovered(
                method, nearest_price(row["token_price"], method.price_range)
            )
            for row in evaluation["results"]
            if row["method"] == name
        }
        found = {relative: line for relative, line in rows.items() if line is not None}
        if found:
            notes.append(
                f"{name}: at relative price {', '.join(found)} {next(iter(found.values()))}"
            )
    return notes


def _cases(
    traces: Folders, held_out: TraceTable, policies: dict[str, Policy], evaluation: dict[str, Any]
) -> dict[str, Cases]:
    """What each policy did on the held-out traces at the price that is shown."""
    if not policies:
        return {}
    unseen = set(held_out.trace_ids.tolist())
    shown = [trace for trace in iter_traces(traces) if trace.trace_id in unseen]
    price = float(at_shown_price(evaluation)["full"]["token_price"])
    return {name: cases_of(policy, shown, price) for name, policy in policies.items()}
