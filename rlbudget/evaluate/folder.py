"""The evaluation of a folder of traces: what ``rlbudget evaluate`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget import console
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import RULES
from rlbudget.card import write_card
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import evaluate_split
from rlbudget.evaluate.figure import draw_frontier
from rlbudget.evaluate.present import shown, table_text
from rlbudget.files import write_text
from rlbudget.policy import Policy, load_policy
from rlbudget.store import digest, load_table
from rlbudget.table import split_questions


def evaluate_folder(
    traces: Path,
    *,
    policies: Sequence[Path] = (),
    out: Path,
    seed: int = 0,
    draws: int = 2000,
    write_cards: bool = False,
    learners: bool = False,
) -> dict[str, Any]:
    """Measure every rule and the policies in these folders on held-out questions.

    Held out are the questions that were when the policies were trained on these traces; where
    none of them was, the split is that of ``seed``. Writes ``evaluation.json``, ``table.txt``,
    ``frontier.png`` and ``frontier.svg`` into ``out``, prints the table and returns what
    ``evaluation.json`` holds. ``write_cards`` puts each policy's rows into the card of its
    folder. ``learners`` fits the learners PPO is held to as well: a logistic head, fitted-Q and
    the exact policy gradient. Raises ``UserError`` for traces and policies that cannot be
    measured together.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}: the bootstrap needs at least 1, better 2000")
    folders = _named(policies)
    loaded = {name: load_policy(folder) for name, folder in folders.items()}
    table = load_table(traces)
    split_seed, notes = _split_of(loaded, digest(traces) if loaded else "", seed)
    split = split_questions(table, seed=split_seed)
    held_out = split.held_out
    train = table.take(np.flatnonzero(~np.isin(table.question_ids, held_out.question_ids)))
    rules, fitted = list(RULES), {}
    if learners:
        from rlbudget.agents.learners import fit_learners

        presets = {policy.preset for policy in loaded.values()} or {"free"}
        with console.progress("Fitting learners") as advance:
            fitted = fit_learners(split, sorted(presets), seed=seed, progress=advance)
        rules.append(logistic_rule(train))
    with console.progress("Evaluating") as advance:
        evaluation = evaluate_split(
            train, held_out, loaded, rules=rules, learners=fitted, seed=seed, draws=draws,
            progress=advance,
        )  # fmt: skip
    evaluation["split_seed"] = split_seed
    evaluation["notes"] = notes
    write_text(out / "evaluation.json", json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.txt", table_text(evaluation))
    draw_frontier(evaluation, out)
    if write_cards:
        for name, folder in folders.items():
            write_card(folder, evaluation, method=name)
    _print(evaluation, out)
    return evaluation


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Policies under the last name of their folder, with its parent's where names are equal."""
    resolved = list(dict.fromkeys(Path(folder).absolute() for folder in folders))
    last = [folder.name for folder in resolved]
    names = [
        folder.name if last.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        for folder in resolved
    ]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two policies are called {twice}; rename one of their folders")
    return dict(zip(names, resolved, strict=True))


def _split_of(policies: dict[str, Policy], these: str, seed: int) -> tuple[int, list[str]]:
    """The split that keeps every policy's training questions out of the held-out ones."""
    seeds: dict[str, int] = {}
    notes = []
    for name, policy in policies.items():
        trained = policy.config["trained"].get("traces") or {}
        if trained.get("digest") != these:
            notes.append(
                f"{name}: trained on other traces; if they shared questions with these, its"
                " numbers are too good"
            )
        elif trained.get("split_seed") is None:
            raise UserError(
                f"policy {name} was trained on these traces but does not say how they were split,"
                " so no question is known to be held out; train it with rlbudget train"
            )
        else:
            seeds[name] = int(trained["split_seed"])
    if len(set(seeds.values())) > 1:
        said = ", ".join(f"{name}: {value}" for name, value in seeds.items())
        raise UserError(
            f"the policies were trained on different splits of these traces (--split-seed {said});"
            " evaluate them one at a time"
        )
    return next(iter(seeds.values()), seed), notes


def _print(evaluation: dict[str, Any], folder: Path) -> None:
    console.out.print(shown(evaluation))
    console.err.print(
        f"Written to {folder}: evaluation.json, table.txt, frontier.png, frontier.svg"
    )
