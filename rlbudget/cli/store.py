"""Folders of traces: merge, count, check. A gateway's store: export, prune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import Flag, Folder, Folders, Number, TheStore
from rlbudget.cli.asked import online
from rlbudget.cli.findings.finding import report
from rlbudget.cli.findings.recordings import of_recording
from rlbudget.cli.findings.survey import survey
from rlbudget.cli.loop import Harvest
from rlbudget.console import note, progress, tell
from rlbudget.errors import UserError
from rlbudget.traces.merge import merge, shards_of, validate

TheFolders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRACES ...")]


@dataclass(frozen=True)
class TracesMerge:
    """Put folders of traces together, each trace once; of one folder, the shards in it."""

    folders: TheFolders
    """Folders of traces, or a folder of shards."""
    out: Folder
    """Folder of all traces; what it holds already is kept."""

    def execute(self) -> None:
        """Run it."""
        with progress("Merging") as advance:
            done = merge(_each(self.folders), self.out, progress=advance)
        there = f", {done.there:,} were there" if done.there else ""
        twice = f", {done.twice:,} were in several folders" if done.twice else ""
        note(f"{done.n:,} traces written to {self.out}{there}{twice}")
        report(of_recording(survey(self.out)))


@dataclass(frozen=True)
class TracesStat:
    """Say what a folder of traces holds, and what is odd about it."""

    folders: TheFolders
    """Folders of traces, or a folder of shards."""

    def execute(self) -> None:
        """Run it."""
        for folder in _each(self.folders):
            note(f"{folder}:")
            report(of_recording(survey(folder)))


@dataclass(frozen=True)
class TracesValidate:
    """Read folders of traces to the last byte and check every trace."""

    folders: TheFolders
    """Folders of traces, or a folder of shards."""

    def execute(self) -> None:
        """Run it; exit status 2 at the first thing that is wrong."""
        each = _each(self.folders)
        tell(f"{validate(each):,} traces in {len(each)} folders: whole, each id once")


@dataclass(frozen=True)
class StoreExport:
    """Turn the audited requests of a store whose outcome is known into traces."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    out: Folder
    """Folder of the traces (Parquet parts)."""
    without: Folders = ()
    """A folder of traces whose questions are left out, such as those the policy was trained on."""
    resume: Flag = False
    """Add to the traces of an earlier export that are in the folder."""

    def execute(self) -> None:
        """Run it."""
        Harvest(self.store, self.out, self.without, self.resume).execute()


@dataclass(frozen=True)
class StorePrune:
    """Delete what is older than a number of days; running experiments keep their requests."""

    store: TheStore
    """File of the store, or postgresql://USER@HOST/NAME."""
    days: Number
    """What is older goes, in days."""

    def execute(self) -> None:
        """Run it."""
        engine = online().open_store(self.store, make=False)
        found = online().experiments(engine)
        live = tuple(one.design.name for one in found if one.status == "running")
        done: dict[str, int] = online().prune(engine, days=self.days, running=live)
        engine.dispose()
        tell(", ".join(f"{rows:,} {name}" for name, rows in done.items()) + " deleted")


def _each(folders: tuple[Path, ...]) -> list[Path]:
    if not folders:
        raise UserError("name a folder of traces")
    return [one for folder in folders for one in shards_of(folder)]
