"""Experiments of a gateway on the command line: start, status, stop, promote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import tyro

from rlbudget.cli.arguments import (
    Flag,
    N,
    NameOrNone,
    Number,
    OptionalFile,
    OptionalName,
    Share,
    TheStore,
)
from rlbudget.cli.asked import online
from rlbudget.console import note, show, tell, tell_json
from rlbudget.errors import UserError
from rlbudget.strategies.experiments.design import Design, design_of
from rlbudget.strategies.plan import load_plan

Arms = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="NAME[:KEY=VALUE,…]", help_behavior_hint=""),
]
_USUAL = Design("", ())


@dataclass(frozen=True)
class ExperimentStart:
    """Begin an experiment: gateways of this store draw an arm for each request from now on."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    plan: OptionalFile = None
    """A plan whose [experiment] is started; else the arms are named here."""
    name: NameOrNone = ""
    """Its name: letters, digits and . _ -"""
    arm: Arms = ()
    """An arm, the control first: NAME, or NAME:token_price=0.001, with effort, max_em_loss,
    thinking_budget, plan, off or weight."""
    by: NameOrNone = _USUAL.by
    """What an arm is drawn by: request or user; the same one always gets the same arm."""
    share: Share = _USUAL.share
    """Of those who take part."""
    margin: Number = _USUAL.margin
    """Exact match that an arm may lose against the control."""
    satisfaction_margin: Number = _USUAL.satisfaction_margin
    """Satisfaction, from 0 to 1, that it may lose."""
    measure: NameOrNone = _USUAL.measure
    """How exact match is known: outcome (audits with feedback) or agreement (audits alone)."""
    size: N = _USUAL.size
    """Audited units after which an undecided arm is stopped."""
    promote: Flag = False
    """Serve an arm that has won to everybody, without being told."""

    def execute(self) -> None:
        """Start it."""
        if (self.plan is None) == (not self.arm):
            raise UserError("name --plan, or --arm twice or more")
        design = self._design()
        engine = online().open_store(self.store)
        try:
            made = online().start(engine, online().with_usual(engine, design))
        finally:
            engine.dispose()
        note(f"{made.design.name} runs: {', '.join(made.live)}; control is {made.live[0]}")

    def _design(self) -> Design:
        if self.plan is not None:
            design = load_plan(self.plan).experiment
            if design is None:
                raise UserError(f"{self.plan} has no [experiment]")
            return design.named()
        said: dict[str, Any] = {
            "name": self.name or "experiment", "arms": [_arm(one) for one in self.arm],
            "by": self.by, "share": self.share, "margin": self.margin,
            "satisfaction_margin": self.satisfaction_margin, "measure": self.measure,
            "size": self.size, "promote": self.promote,
        }  # fmt: skip
        return design_of(said, _wrong)


def _wrong(why: str, *path: str | int) -> NoReturn:
    where = "".join(f" {one + 1}" if isinstance(one, int) else "" for one in path)
    raise UserError(f"arm{where}: {why}" if where else why)


def _arm(said: str) -> dict[str, Any]:
    """NAME:KEY=VALUE,KEY=VALUE as the table that it stands for."""
    name, _, rest = said.partition(":")
    found: dict[str, Any] = {"name": name}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals and key != "off":
            raise UserError(f"--arm {said}: KEY=VALUE, not {pair!r}")
        found[key] = True if key == "off" and not equals else _value(value)
    return found


def _value(said: str) -> Any:
    for kind in (int, float):
        try:
            return kind(said)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(said, said)


@dataclass(frozen=True)
class ExperimentStatus:
    """Show what an experiment has found: each arm beside the control, with intervals."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    name: OptionalName = None
    """Of the experiment; by default the newest."""
    json: Flag = False
    """Print one JSON object instead of the table."""

    def execute(self) -> None:
        """Read and show."""
        engine = online().open_store(self.store, make=False)
        try:
            experiment = online().find(engine, self.name)
            results = online().results(engine, experiment)
        finally:
            engine.dispose()
        if self.json:
            tell_json({**online().status_json(experiment, results)})
            return
        tell(f"{experiment.design.name}: {experiment.status}, since {experiment.started[:19]}"
             + (f"; {experiment.why}" if experiment.why else ""))  # fmt: skip
        show(online().status_table(experiment, results))


@dataclass(frozen=True)
class ExperimentStop:
    """Stop an arm, or the experiment as a whole: requests are served by the plan again."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    name: OptionalName = None
    """Of the experiment; by default the newest."""
    arm: OptionalName = None
    """The arm; by default all of it."""

    def execute(self) -> None:
        """Stop it."""
        _changed(self.store, self.name, "stop", self.arm)


@dataclass(frozen=True)
class ExperimentPromote:
    """Serve an arm to everybody from now on, until the experiment is stopped."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    arm: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The arm."""
    name: OptionalName = None
    """Of the experiment; by default the newest."""

    def execute(self) -> None:
        """Promote it."""
        _changed(self.store, self.name, "promote", self.arm)


def _changed(store: str, name: str | None, what: str, arm: str | None) -> None:
    engine = online().open_store(store, make=False)
    try:
        experiment = online().find(engine, name)
        change = getattr(online(), what)
        found = change(engine, experiment.design.name, arm, "by command")
        online().note_event(engine, what, name=experiment.design.name, arm=arm)
    finally:
        engine.dispose()
    arms = {name: one.status for name, one in found.arms.items()}
    note(f"{found.design.name}: {found.status}; "
         + ", ".join(f"{name} {status}" for name, status in arms.items()))  # fmt: skip
