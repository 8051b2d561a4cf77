"""The registry: every version of a policy that was ever trained, and which one is served.

A folder::

    0001/ 0002/ ...     policy folders, never changed
    history.jsonl       what was added, proposed, promoted, refused and rolled back, when and why

What is served is what the history says last, so that a promotion is one line: there or not. A
server may ask for ``served_policy`` again at any time; ``rollback`` undoes a promotion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.files.folders import PATIENCE, locked
from rlbudget.policy.folder import Policy, load_policy, policy_folders, save_policy
from rlbudget.strategies.feedback.journal import Action, Event, Journal, note, read_journal

_HISTORY, _TRAINING = "history.jsonl", ".training"


@dataclass(frozen=True, slots=True)
class Serving:
    """A policy to serve, and the registry's number of it where it came from one."""

    policy: Policy
    version: int | None


def load_serving(folder: Path | str) -> Serving:
    """The policy of a policy folder, or the one that a registry serves.

    Raises ``UserError`` as ``load_policy`` and ``Registry.served_policy`` do.
    """
    if not (Path(folder) / _HISTORY).is_file():
        return Serving(load_policy(folder), None)
    registry = Registry(folder)
    version = registry.served()
    return Serving(
        registry.served_policy() if version is None else registry.policy(version), version
    )


def load_servings(folders: Sequence[str | Path]) -> dict[str, Serving]:
    """Several by the names of their folders, in their order."""
    return {name: load_serving(folder) for name, folder in policy_folders(folders).items()}


class Registry:
    """Versions of a policy in a folder; made where there is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{folder} is a file, not a registry")

    def versions(self) -> list[int]:
        """All of them, the oldest first."""
        if not self.folder.is_dir():
            return []
        names = (p.name for p in self.folder.iterdir() if p.is_dir())
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def journal(self) -> Journal:
        """What happened, and how many lines of the history are torn or damaged."""
        return read_journal(self.folder / _HISTORY)

    def history(self) -> list[Event]:
        """What happened, the oldest first."""
        return list(self.journal().events)

    def served(self) -> int | None:
        """The version that is served; None where none has been promoted."""
        return next(iter(self.journal().served[-1:]), None)

    def policy(self, version: int) -> Policy:
        """One version; ``UserError`` if there is none."""
        if version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise UserError(f"{self.folder} holds no version {version}; there are: {there}")
        return load_policy(self._folder_of(version))

    def served_policy(self) -> Policy:
        """The policy that is served; ``UserError`` if none is."""
        version = self.served()
        if version is None:
            raise UserError(f"{self.folder} serves no policy yet: add one and promote it")
        return self.policy(version)

    def add(self, policy: Policy, why: str = "") -> int:
        """Keep a policy as the next version, not yet served; its number."""
        with self._writing():
            known = (event.version for event in self.history())
            version = max([*self.versions(), *known], default=0) + 1
            save_policy(self._folder_of(version), policy)
            self._note("added", version, why)
        return version

    def promote(self, version: int, why: str = "", *, instead_of: int | None = None) -> None:
        """Serve a version from now on.

        ``UserError`` where there is none, and where another one than ``instead_of`` is served.
        """
        self.policy(version)  # a damaged one is never served
        with self._writing():
            served = self.served()
            if instead_of not in (None, served):
                raise UserError(
                    f"{self.folder}: version {served} is served by now, not {instead_of}:"
                    f" version {version} is kept and not promoted"
                )
            self._note("promoted", version, why)

    def propose(self, version: int, why: str) -> None:
        """Note that a version won its contest and waits for somebody to promote it."""
        with self._writing():
            self._note("proposed", version, why)

    def refuse(self, version: int, why: str) -> None:
        """Note that a version was not promoted."""
        with self._writing():
            self._note("refused", version, why)

    def rollback(self) -> int:
        """Serve what was served before the present version; its number.

        Raises ``UserError`` where there is nothing to go back to.
        """
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such registry")
        with self._writing():
            promoted = self.journal().served
            if len(promoted) < 2:
                raise UserError(f"{self.folder}: nothing was served before the present version")
            version = promoted[-2]
            self.policy(version)
            self._note("rolled back", version, f"from {promoted[-1]}")
        return version

    @contextmanager
    def training(self) -> Iterator[None]:
        """Nobody else trains for this registry; others may promote and roll back meanwhile.

        Raises ``UserError`` at once where somebody does.
        """
        with locked(self.folder, name=_TRAINING):
            yield

    def _folder_of(self, version: int) -> Path:
        return self.folder / f"{version:04d}"

    def _note(self, action: Action, version: int, why: str) -> None:
        note(self.folder / _HISTORY, action, version, why)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time. What one that was killed had added and not noted is noted."""
        with locked(self.folder, wait=PATIENCE):
            noted = {event.version for event in self.history() if event.action == "added"}
            for version in self.versions():
                if version not in noted:
                    self._note("added", version, "by a process that was killed")
            yield
