"""Experiments in the store: started, stopped, promoted; one change at a time, whoever makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import msgspec
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from rlbudget.errors import UserError
from rlbudget.serve.store.reading import entries
from rlbudget.serve.store.tables import EXPERIMENTS
from rlbudget.strategies.experiments.design import ArmStatus, Design, Experiment
from rlbudget.strategies.experiments.results import ArmResult, results_of, values_of
from rlbudget.strategies.feedback.log import now

_TRIES = 20


def experiments(engine: Engine) -> list[Experiment]:
    """All of them, the newest first. What a later version wrote is left out."""
    asked = select(EXPERIMENTS.c.content).order_by(EXPERIMENTS.c.at.desc())
    with engine.connect() as connection:
        rows = connection.execute(asked).scalars().all()
    found = []
    for content in rows:
        try:
            found.append(msgspec.json.decode(content, type=Experiment))
        except msgspec.ValidationError:
            continue
    return found


def running(engine: Engine) -> Experiment | None:
    """The one that runs, or whose arm was promoted and holds; None where there is none."""
    live = [one for one in experiments(engine) if one.status != "stopped"]
    return next(iter(live), None)


def find(engine: Engine, name: str | None) -> Experiment:
    """By its name, or the newest; ``UserError`` where there is none."""
    found = experiments(engine)
    named = found if name is None else [one for one in found if one.design.name == name]
    if not named:
        there = ", ".join(one.design.name for one in found) or "none"
        raise UserError(f"no experiment {name or ''} here; there are: {there}".replace("  ", " "))
    return named[0]


def start(engine: Engine, design: Design) -> Experiment:
    """Begin one; ``UserError`` where its name is known or another one runs or holds."""
    before = running(engine)
    if before is not None:
        raise UserError(
            f"the experiment {before.design.name} is {before.status}: stop it before another starts"
        )
    made = Experiment(design, now(), arms={arm.name: ArmStatus() for arm in design.arms})
    row = {"name": design.name, "at": time.time(), "revision": 1, "content": _content(made)}
    try:
        with engine.begin() as connection:
            connection.execute(insert(EXPERIMENTS), row)
    except IntegrityError:
        raise UserError(
            f"there was an experiment {design.name} already: choose another name"
        ) from None
    return made


def begin(engine: Engine, design: Design) -> None:
    """Start what a plan declares, once: one that was stopped is not started again.

    ``UserError`` where another runs, or where the design of a known one was changed.
    """
    known = next((one for one in experiments(engine) if one.design.name == design.name), None)
    if known is None:
        try:
            start(engine, design)
        except UserError:
            if running(engine) is None or find(engine, None).design.name != design.name:
                raise  # else another gateway of this store was quicker
        return
    same = replace(
        design, usual_tokens=known.design.usual_tokens, most_tokens=known.design.most_tokens
    )
    if same != known.design:
        raise UserError(
            f"the experiment {design.name} has begun with another design: give the new one another"
            " name"
        )


def stop(engine: Engine, name: str, arm: str | None, why: str) -> Experiment:
    """Stop an arm, or all of the experiment: requests are served by the plan again.

    With its last arm but the control an experiment ends. ``UserError`` for an arm that there is
    not, and for the control: it is what is left.
    """

    def change(was: Experiment) -> Experiment:
        if arm is None:
            return was if was.status == "stopped" else replace(was, status="stopped", why=why)
        was.design.arm(arm)
        if arm == was.design.control.name:
            raise UserError(f"{arm} is the control: stop the experiment as a whole")
        found = _with(was, arm, "stopped", why)
        return found if len(found.live) > 1 else replace(found, status="stopped", why=why)

    return _change(engine, name, change)


def promote(engine: Engine, name: str, arm: str, why: str) -> Experiment:
    """Serve an arm to everybody from now on, until the experiment is stopped."""

    def change(was: Experiment) -> Experiment:
        was.design.arm(arm)
        if was.status == "stopped":
            raise UserError(f"{name} is stopped: start another")
        return replace(_with(was, arm, "promoted", why), status="promoted", why=why)

    return _change(engine, name, change)


def results(engine: Engine, experiment: Experiment) -> list[ArmResult]:
    """What its requests in the store show: the same, whichever gateway served them."""
    name = experiment.design.name
    return results_of(experiment, values_of(experiment.design, entries(engine, experiment=name)))


def judge(engine: Engine, experiment: Experiment) -> tuple[Experiment, list[str]]:
    """Stop arms that broke a guard-rail, cost tokens or stayed undecided; promote one that won,
    where the design says so. What was done, a line each."""  # fmt: skip
    done: list[str] = []
    for one in results(engine, experiment):
        if experiment.status != "running" or one.arm not in experiment.live:
            continue
        why = f"{one.verdict} ({_shown(one)})"
        if one.verdict == "wins" and experiment.design.promote:
            experiment = promote(engine, experiment.design.name, one.arm, why)
        elif one.verdict not in ("open", "wins"):
            experiment = stop(engine, experiment.design.name, one.arm, why)
        else:
            continue
        done.append(f"{one.arm}: {why}")
    return experiment, done


def _shown(one: ArmResult) -> str:
    """The intervals that it rests on."""
    match, content, tokens = (x.interval for x in (one.exact_match, one.satisfaction, one.tokens))
    said = (f"exact match {100 * match[0]:+.2f} to {100 * match[1]:+.2f} points of"
            f" {one.exact_match.n}, tokens {tokens[0]:+.0f} to {tokens[1]:+.0f}")  # fmt: skip
    if one.satisfaction.n:
        said += (f", satisfaction {100 * content[0]:+.1f} to {100 * content[1]:+.1f} points of"
                 f" {one.satisfaction.n}")  # fmt: skip
    return said


def _with(
    was: Experiment, arm: str, status: Literal["stopped", "promoted"], why: str
) -> Experiment:
    known: Mapping[str, ArmStatus] = was.arms
    if known.get(arm, ArmStatus()).status == status:
        return was
    return replace(was, arms={**known, arm: ArmStatus(status, why, now())})


def _change(engine: Engine, name: str, change: Callable[[Experiment], Experiment]) -> Experiment:
    """Change one as nobody else does meanwhile."""
    for _ in range(_TRIES):
        with engine.connect() as connection:
            asked = select(EXPERIMENTS.c.revision, EXPERIMENTS.c.content)
            row = connection.execute(asked.where(EXPERIMENTS.c.name == name)).first()
        if row is None:
            find(engine, name)
            continue
        was = msgspec.json.decode(row.content, type=Experiment)
        found = change(was)
        if found == was:
            return found
        with engine.begin() as connection:
            done = connection.execute(
                update(EXPERIMENTS)
                .where(EXPERIMENTS.c.name == name, EXPERIMENTS.c.revision == row.revision)
                .values(revision=row.revision + 1, content=_content(found))
            )
        if done.rowcount == 1:
            return found
    raise UserError(f"{name} is being changed by others: try again")


def _content(experiment: Experiment) -> str:
    return msgspec.json.encode(experiment).decode()
