"""The feedback loop: feedback, stream, harvest, retrain, registry."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import (
    Flag,
    Folder,
    Folders,
    N,
    Number,
    OptionalN,
    OptionalText,
    Share,
    TheLog,
    ThePolicy,
    TheRegistry,
    TheTraces,
)
from rlbudget.cli.asked import online
from rlbudget.console import note, progress, show, tell, tell_json
from rlbudget.errors import UserError
from rlbudget.policy.folder import load_policy
from rlbudget.strategies.feedback.entries import Entries, read_log
from rlbudget.strategies.feedback.harvest import harvest
from rlbudget.strategies.feedback.log import feedback, outcome_of
from rlbudget.strategies.feedback.production import as_json, shown, streams_of
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import Retrained, retrain
from rlbudget.strategies.feedback.rolling import one_round


@dataclass(frozen=True)
class Feedback:
    """Tell a decision log what the right answer to a request was, or whether the given one was."""

    log: TheLog
    """Folder of the log, or a gateway's store."""
    request_id: Annotated[str, tyro.conf.arg(metavar="ID")]
    """Id of the request, as `rlbudget decode` said it."""
    target: OptionalText = None
    """The right answer."""
    right: Flag = False
    """The answer that was given is right."""
    wrong: Flag = False
    """The answer that was given is wrong."""

    def execute(self) -> None:
        """Add the line; the latest one of a request counts."""
        if self.right and self.wrong:
            raise UserError("feedback takes one of: --target TEXT, --right, --wrong")
        right = self.right if self.right or self.wrong else None
        if is_store(self.log):
            outcome = outcome_of(self.request_id, target=self.target, right=right)
            online().tell(self.log, outcome)
        else:
            feedback(self.log, self.request_id, target=self.target, right=right)


@dataclass(frozen=True)
class Stream:
    """Show what each policy of a decision log saves and loses, from its audited requests."""

    log: TheLog
    """Folder of the log, or a gateway's store."""
    window: N = 200
    """Audits of the window that shows the present."""
    confidence: Share = 0.95
    """Chance that both intervals of a policy hold, however often one looks."""
    json: Flag = False
    """Print JSON, one policy a line, instead of the table."""

    def execute(self) -> None:
        """Read and show."""
        entries = entries_in(self.log)
        streams = streams_of(entries, window=self.window, confidence=self.confidence)
        if self.json:
            for stream in streams:
                tell_json(as_json(stream))
        else:
            show(shown(streams))
        _say_damaged(entries.damaged)


@dataclass(frozen=True)
class Harvest:
    """Turn the audited requests of a decision log whose outcome is known into traces."""

    log: TheLog
    """Folder of the log, or a gateway's store."""
    out: Folder
    """Folder of the traces (Parquet parts)."""
    without: Folders = ()
    """A folder of traces whose questions are left out, such as those the policy was trained on."""
    resume: Flag = False
    """Add to the traces of an earlier harvest that are in the folder."""

    def execute(self) -> None:
        """Run it."""
        stats = harvest(entries_in(self.log), self.out, without=self.without, resume=self.resume)
        note(
            f"{stats.n} traces written to {self.out}; left out: {stats.waiting} without an"
            f" outcome, {stats.undecided} that it does not decide, {stats.known} known"
        )
        _say_damaged(stats.damaged)


def entries_in(where: str | Path) -> Entries:
    """What a decision log or a gateway's store holds; ``UserError`` for what is neither."""
    if not is_store(where):
        return read_log(where)
    found: Entries = online().read_entries(where)
    return found


def is_store(where: str | Path) -> bool:
    """Whether a name is that of a store, not of a folder of logs."""
    return "://" in str(where) or Path(where).is_file()


def _say_damaged(lines: int) -> None:
    if lines:
        note(f"rlbudget: {lines} damaged lines of the log were left out")


@dataclass(frozen=True)
class Retrain:
    """Train the served policy of a registry further; promote the result if it is good enough."""

    registry: TheRegistry
    """Folder of the registry."""
    traces: TheTraces
    """Folder of new traces; 30% of their questions are kept for the contest."""
    margin: Number = 0.005
    """Utility that may be lost at most, with 95% confidence, for a version to be promoted."""
    total_timesteps: OptionalN = None
    """Environment steps; by default the agent's."""
    seed: N = 0
    """Seed of the split and of the training."""
    propose: Flag = False
    """Promote nothing: what wins waits for `rlbudget registry promote`."""

    def execute(self) -> None:
        """Run it."""
        with progress("Training") as advance:
            done = retrain(
                Registry(self.registry), self.traces, margin=self.margin,
                total_timesteps=self.total_timesteps, promotes=not self.propose, seed=self.seed,
                progress=advance,
            )  # fmt: skip
        tell(f"version {done.version}, {done.contest}")
        tell(_said(done, self.registry))


def _said(done: Retrained, registry: Path) -> str:
    if done.proposed:
        return f"proposed: rlbudget registry promote {registry} {done.version}"
    return f"{'promoted' if done.promoted else 'not promoted'}: {registry}"


@dataclass(frozen=True)
class Rolling:
    """On a schedule: harvest what was served, evaluate by cross-validation, retrain, propose."""

    log: TheLog
    """Folder of the log, or a gateway's store."""
    registry: TheRegistry
    """Folder of the registry."""
    out: Folder
    """Folder of the harvested traces; added to."""
    every: Number = 24.0
    """Hours between two rounds."""
    rounds: OptionalN = None
    """Rounds, after which it ends; left out, it goes on."""
    least: N = 200
    """New traces that a retraining wants."""
    without: Folders = ()
    """A folder of traces whose questions are left out, such as those the policy was trained on."""
    promote: Flag = False
    """Serve what wins its contest; else it waits for `rlbudget registry promote`."""
    margin: Number = 0.005
    """Utility that may be lost at most, with 95% confidence, for a version to win."""
    total_timesteps: OptionalN = None
    """Environment steps; by default the agent's."""
    seed: N = 0
    """Seed of the split and of the training."""

    def execute(self) -> None:
        """Run rounds."""
        if not 0 < self.every < math.inf:
            raise UserError("every must be above 0, in hours")
        registry, known, turn = Registry(self.registry), 0, 0
        while self.rounds is None or turn < self.rounds:
            if turn:
                time.sleep(self.every * 3600)
            turn += 1
            done = one_round(
                entries_in(self.log), registry, self.out, least=self.least, known=known,
                without=self.without, promotes=self.promote, margin=self.margin,
                total_timesteps=self.total_timesteps, seed=self.seed,
            )  # fmt: skip
            tell(f"round {turn}: {done.new} new traces")
            if done.rolled is not None:
                tell(f"served: {done.rolled}")
            if done.retrained is None:
                tell(f"not retrained: {done.why_not}")
                continue
            known += done.new
            tell(f"version {done.retrained.version}, {done.retrained.contest}")
            tell(_said(done.retrained, self.registry))


@dataclass(frozen=True)
class RegistryAdd:
    """Keep a policy as the next version and serve it if nothing is served yet."""

    registry: TheRegistry
    """Folder of the registry; made if it is not there."""
    policy: ThePolicy
    """Policy folder."""
    promote: Flag = False
    """Serve it at once, whatever is served now."""

    def execute(self) -> None:
        """Add, perhaps promote, show."""
        registry = Registry(self.registry)
        version = registry.add(load_policy(self.policy), str(self.policy.name))
        if self.promote or registry.served() is None:
            registry.promote(version)
        _show(registry)


@dataclass(frozen=True)
class RegistryList:
    """Show what is served and what happened."""

    registry: TheRegistry
    """Folder of the registry."""

    def execute(self) -> None:
        """Show it."""
        _show(Registry(self.registry))


@dataclass(frozen=True)
class RegistryPromote:
    """Serve a version from now on, such as one that a retraining proposed."""

    registry: TheRegistry
    """Folder of the registry."""
    version: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="VERSION")]]
    """Number of the version."""

    def execute(self) -> None:
        """Promote, show."""
        registry = Registry(self.registry)
        registry.promote(self.version, "by hand")
        _show(registry)


@dataclass(frozen=True)
class RegistryRollback:
    """Serve again what was served before."""

    registry: TheRegistry
    """Folder of the registry."""

    def execute(self) -> None:
        """Go back, show."""
        registry = Registry(self.registry)
        registry.rollback()
        _show(registry)


def _show(registry: Registry) -> None:
    journal = registry.journal()
    for event in journal.events:
        why = f": {event.why}" if event.why else ""
        tell(f"{event.time} {event.action} {event.version}{why}")
    if journal.skipped:
        tell(f"skipped: {journal.skipped} torn or damaged lines of history.jsonl")
    tell(f"served: {registry.served() or 'none'}")
