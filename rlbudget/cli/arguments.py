"""Types of arguments, as the help shows them: FOLDER, FILE, NAME, N, PRICE, …"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.errors import UserError

Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
NameOrNone = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
"""a text that may be left empty"""
N = Annotated[int, tyro.conf.arg(metavar="N")]
Share = Annotated[float, tyro.conf.arg(metavar="SHARE")]
Number = Annotated[float, tyro.conf.arg(metavar="X")]

TheTraces = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="TRACES")]]
ThePolicy = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="POLICY")]]
TheLog = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="LOG")]]
TheStore = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="STORE")]]
TheRegistry = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="REGISTRY")]]
TheRules = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RULES")]]
TheQuestion = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="QUESTION")]]

OptionalN = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
OptionalNumber = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]
OptionalMoney = Annotated[str | None, tyro.conf.arg(metavar="MONEY", help_behavior_hint="")]
OptionalShare = Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")]
OptionalPrice = Annotated[float | None, tyro.conf.arg(metavar="PRICE", help_behavior_hint="")]
OptionalName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
OptionalFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Metadata = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint=""),
]
Texts = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="TEXT", help_behavior_hint=""),
]
PriceRange = Annotated[
    tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH", help_behavior_hint="")
]
Folders = Annotated[
    tuple[Path, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint=""),
]
Files = Annotated[
    tuple[Path, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="FILE", help_behavior_hint=""),
]
Numbers = Annotated[
    tuple[float, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="X", help_behavior_hint=""),
]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


def metadata_of(pairs: Sequence[str]) -> dict[str, str | float]:
    """KEY=VALUE pairs of ``--metadata``; a value that is a number counts as one.

    Raises ``UserError`` for a pair without ``=``.
    """
    metadata: dict[str, str | float] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--metadata takes KEY=VALUE, not {pair!r}")
        try:
            metadata[key] = float(value)
        except ValueError:
            metadata[key] = value
    return metadata
