"""The feedback loop: feedback, stream, harvest, retrain, registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rlbudget.cli.arguments import (
    Flag,
    OptionalInt,
    OptionalStr,
)
from rlbudget.console import err, out, progress
from rlbudget.errors import UserError

if TYPE_CHECKING:
    from rlbudget.strategies.registry import Registry


@dataclass(frozen=True)
class Feedback:
    """Tell a decision log what the right answer to a request was, or whether the given one was."""

    log: tyro.conf.Positional[Path]
    """Folder of the log."""
    request_id: str
    """Id of the request, as `rlbudget decode --log` said it."""
    target: OptionalStr = None
    """The right answer."""
    right: Flag = False
    """The answer that was given is right."""
    wrong: Flag = False
    """The answer that was given is wrong."""

    def execute(self) -> None:
        """Add the line; the latest one of a request counts."""
        from rlbudget.strategies.log import feedback

        if self.right and self.wrong:
            raise UserError("feedback takes one of: --target TEXT, --right, --wrong")
        right = self.right if self.right or self.wrong else None
        feedback(self.log, self.request_id, target=self.target, right=right)


@dataclass(frozen=True)
class Stream:
    """Show what each policy of a decision log saves and loses, from its audited requests."""

    log: tyro.conf.Positional[Path]
    """Folder of the log."""
    window: int = 200
    """Audits of the window that shows the present."""
    confidence: float = 0.95
    """Chance that both intervals of a policy hold, however often one looks."""
    json: Flag = False
    """Print JSON, one policy a line, instead of the table."""

    def execute(self) -> None:
        """Read and show."""
        from rlbudget.strategies.entries import read_log
        from rlbudget.strategies.production import as_json, shown, streams_of

        entries = read_log(self.log)
        streams = streams_of(entries, window=self.window, confidence=self.confidence)
        if self.json:
            for stream in streams:
                out.print(json.dumps(as_json(stream)), markup=False, soft_wrap=True)
        else:
            out.print(shown(streams))
        _say_damaged(entries.damaged)


@dataclass(frozen=True)
class Harvest:
    """Turn the audited requests of a decision log whose outcome is known into traces."""

    log: tyro.conf.Positional[Path]
    """Folder of the log."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    without: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A folder of traces whose questions are left out, such as those the policy was trained on."""
    resume: Flag = False
    """Add to the traces of an earlier harvest that are in the folder."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.strategies.harvest import harvest

        stats = harvest(self.log, self.out, without=self.without, resume=self.resume)
        err.print(
            f"{stats.n} traces written to {self.out}; left out: {stats.waiting} without an"
            f" outcome, {stats.undecided} that it does not decide, {stats.known} known",
            soft_wrap=True,
        )
        _say_damaged(stats.damaged)


def _say_damaged(lines: int) -> None:
    if lines:
        err.print(f"rlbudget: {lines} damaged lines of the log were left out")


@dataclass(frozen=True)
class Retrain:
    """Train on from the served policy of a registry; promote the result if it is good enough."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""
    traces: tyro.conf.Positional[Path]
    """Folder of new traces; 30% of their questions are kept for the contest."""
    margin: float = 0.005
    """Utility that may be lost at most, with 95% confidence, for a version to be promoted."""
    total_timesteps: OptionalInt = None
    """Environment steps; by default the agent's."""
    seed: int = 0
    """Seed of the split and of the training."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.strategies.registry import Registry
        from rlbudget.strategies.retrain import retrain

        with progress("Training") as advance:
            done = retrain(
                Registry(self.registry), self.traces, margin=self.margin,
                total_timesteps=self.total_timesteps, seed=self.seed, progress=advance,
            )  # fmt: skip
        out.print(f"version {done.version}, {done.contest}", markup=False, soft_wrap=True)
        out.print(f"{'promoted' if done.promoted else 'not promoted'}: {self.registry}")


@dataclass(frozen=True)
class RegistryAdd:
    """Keep a policy as the next version and serve it if nothing is served yet."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry; made if it is not there."""
    policy: tyro.conf.Positional[Path]
    """Policy folder."""
    promote: Flag = False
    """Serve it at once, whatever is served now."""

    def execute(self) -> None:
        """Add, perhaps promote, show."""
        from rlbudget.policy.folder import load_policy
        from rlbudget.strategies.registry import Registry

        registry = Registry(self.registry)
        version = registry.add(load_policy(self.policy), str(self.policy.name))
        if self.promote or registry.served() is None:
            registry.promote(version)
        _show(registry)


@dataclass(frozen=True)
class RegistryList:
    """Show what is served and what happened."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""

    def execute(self) -> None:
        """Show it."""
        from rlbudget.strategies.registry import Registry

        _show(Registry(self.registry))


@dataclass(frozen=True)
class RegistryRollback:
    """Serve again what was served before."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""

    def execute(self) -> None:
        """Go back, show."""
        from rlbudget.strategies.registry import Registry

        registry = Registry(self.registry)
        registry.rollback()
        _show(registry)


@dataclass(frozen=True)
class RegistryCommand:
    """Every version of a policy, and which one is served: add, list, roll back."""

    action: (
        Annotated[RegistryAdd, tyro.conf.subcommand("add")]
        | Annotated[RegistryList, tyro.conf.subcommand("list")]
        | Annotated[RegistryRollback, tyro.conf.subcommand("rollback")]
    )

    def execute(self) -> None:
        """Run the action."""
        self.action.execute()


def _show(registry: Registry) -> None:
    for event in registry.history():
        why = f": {event.why}" if event.why else ""
        out.print(f"{event.time} {event.action} {event.version}{why}", markup=False, soft_wrap=True)
    out.print(f"served: {registry.served() or 'none'}")
