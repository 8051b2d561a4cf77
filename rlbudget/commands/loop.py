"""The feedback loop: retrain, registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rlbudget.commands.arguments import (
    Flag,
    OptionalInt,
)
from rlbudget.console import out, progress

if TYPE_CHECKING:
    from rlbudget.strategies.registry import Registry


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
        from rlbudget.policy import load_policy
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
