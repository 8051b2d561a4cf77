"""Types of arguments, as tyro shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rlbudget.strategies.compose import Strategy

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Metadata = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")]
OptionalRange = Annotated[
    tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH", help_behavior_hint="")
]
Paths = Annotated[
    tuple[Path, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="PATH", help_behavior_hint=""),
]
Floats = Annotated[
    tuple[float, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="FLOAT", help_behavior_hint=""),
]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class StrategyArguments:
    """What stands over the policies: an ensemble, then a guard, then rules."""

    combine: OptionalStr = None
    """Make the policies one: mean (of their chances), vote, or the file of `rlbudget blend`."""
    price_factor: Floats = ()
    """Times the token price, one a policy; several over one policy combine its versions."""
    guard: OptionalPath = None
    """Impact model of `rlbudget impact`: stop only where the risk to lose the answer is low."""
    max_risk: float = 0.01
    """Share of stops that may lose an answer, from 0 to 1, for the guard."""
    rules: OptionalPath = None
    """TOML file of hybrid rules, which have the last word."""

    def read(self) -> Strategy:
        """Load the files."""
        from rlbudget.strategies.compose import read_strategy

        return read_strategy(
            combine=self.combine,
            price_factors=self.price_factor,
            guard=self.guard,
            max_risk=self.max_risk,
            rules=self.rules,
        )


Strategies = Annotated[StrategyArguments, tyro.conf.arg(name="")]
