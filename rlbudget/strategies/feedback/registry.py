"""The registry: every version of a policy that was ever trained, and which one is served.

A folder::

    0001/ 0002/ ...     policy folders, never changed
    served              the number of the one that is served
    history.jsonl       what was added, promoted, refused and rolled back, when and why

A server may ask for ``served_policy`` again at any time; ``rollback`` undoes a promotion.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlbudget.errors import UserError
from rlbudget.files import write_text
from rlbudget.policy.folder import Policy, load_policy, policy_folders, save_policy

Action = Literal["added", "promoted", "refused", "rolled back"]
_SERVED, _HISTORY, _LOCK = "served", "history.jsonl", ".lock"


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the history."""

    time: str
    """UTC, ISO 8601"""
    action: Action
    version: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Serving:
    """A policy to serve, and the registry's number of it where it came from one."""

    policy: Policy
    version: int | None


def load_serving(folder: Path | str) -> Serving:
    """The policy of a policy folder, or the one that a registry serves.

    Raises ``UserError`` as ``load_policy`` and ``Registry.served_policy`` do.
    """
    if not any((Path(folder) / name).is_file() for name in (_SERVED, _HISTORY)):
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
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def served(self) -> int | None:
        """The version that is served; None where none has been promoted."""
        try:
            return int((self.folder / _SERVED).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(f"{self.folder / _SERVED} is damaged: promote a version") from None

    def policy(self, version: int) -> Policy:
        """One version; ``UserError`` if there is none."""
        if version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise UserError(f"{self.folder} holds no version {version}; there are: {there}")
        return load_policy(self.folder / f"{version:04d}")

    def served_policy(self) -> Policy:
        """The policy that is served; ``UserError`` if none is."""
        version = self.served()
        if version is None:
            raise UserError(f"{self.folder} serves no policy yet: add one and promote it")
        return self.policy(version)

    def history(self) -> list[Event]:
        """What happened, the oldest first."""
        try:
            lines = (self.folder / _HISTORY).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [Event(**json.loads(line)) for line in lines]

    def add(self, policy: Policy, why: str = "") -> int:
        """Keep a policy as the next version, not yet served; its number."""
        with self._locked():
            version = max(self.versions(), default=0) + 1
            save_policy(self.folder / f"{version:04d}", policy)
            self._note("added", version, why)
        return version

    def promote(self, version: int, why: str = "") -> None:
        """Serve a version from now on."""
        self._serve("promoted", version, why)

    def refuse(self, version: int, why: str) -> None:
        """Note that a version was not promoted."""
        with self._locked():
            self._note("refused", version, why)

    def rollback(self) -> int:
        """Serve what was served before the present version; its number.

        Raises ``UserError`` where there is nothing to go back to.
        """
        promoted: list[int] = []
        for event in self.history():
            if event.action == "promoted":
                promoted.append(event.version)
            elif event.action == "rolled back":
                promoted.pop()
        if len(promoted) < 2:
            raise UserError(f"{self.folder}: nothing was served before the present version")
        version = promoted[-2]
        self._serve("rolled back", version, f"from {promoted[-1]}")
        return version

    def _serve(self, action: Action, version: int, why: str) -> None:
        self.policy(version)  # a damaged one is never served
        with self._locked():
            write_text(self.folder / _SERVED, f"{version}\n")
            self._note(action, version, why)

    def _note(self, action: Action, version: int, why: str) -> None:
        event = Event(datetime.now(UTC).isoformat(timespec="seconds"), action, version, why)
        with (self.folder / _HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: the lock is a file that only one can make."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / _LOCK
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise UserError(
                f"another process writes to {self.folder}; if none does, delete {lock}"
            ) from None
        try:
            yield
        finally:
            lock.unlink()
