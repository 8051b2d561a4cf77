"""What is so at this moment, beside what the store says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Now:
    """What is so at this moment, beside what the store says."""

    plan: str
    mode: str
    price: float | None
    """set by hand"""
    price_range: tuple[float, float]
    running: int
    lost: int
    """records that the store could not take"""
    models: Sequence[str]
    classes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """class -> waiting, running, refused"""
    steered: float | None = None
    """the price that is steered, where one is"""
    alarms: Sequence[str] = ()
    full: bool = False
    """whether all is decoded in full after an alarm"""
    per_million: float | None = None
    """what a million tokens cost"""
