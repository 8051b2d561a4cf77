"""The conformance suite: what every engine is asked, and how its rows are kept.

100 questions, greedy, under ``runs/models/smollm2/plan/plan.toml``: a policy, a guard over it and
rules over both, on question, task, metadata, tokens and signals. Under ``plan_top.toml`` the policy
sees what 20 log-probabilities a token give. ``conformance.py --record`` replays both and keeps the
exits; the checks of the engines read them here. This needs no torch.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.plan import Plan, load_plan
from runs.common import KEPT, OUT, RESULTS, ROOT, made, write_result

REFERENCE = KEPT / "reference.json"
PLANS = ("plan", "plan_top")
WANTED = 0.99
SEED = 11
ENGINES = (
    "Hugging Face",
    "vLLM",
    "llama-server",
    "llama-cpp-python",
    "OpenAI client, vLLM",
    "OpenAI client, llama-server",
    "ensemble and correction",
)
"""in the order of the rows"""
_KEPT = "conformance"


def _code() -> str:
    """A digest of the sources that decide."""
    digest = sha256()
    for room in ("decoding", "integrations", "policy", "signals", "strategies", "models"):
        for file in sorted((ROOT / "rlbudget" / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


CODE = _code()
"""Names the code of the package as it was when the check began."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What is asked under one of ``PLANS``, and where a replay exits."""

    name: str
    requests: list[RequestFacts]
    exits: list[list[Any]]
    """(thinking tokens, reason) of each"""

    @property
    def plan(self) -> Plan:
        """The plan itself."""
        return load_plan(plan_file(self.name))

    def first(self, n: int) -> Suite:
        """The first n of its questions."""
        return Suite(self.name, self.requests[:n], self.exits[:n])

    def by_task(self) -> dict[str, list[int]]:
        """Task -> places of its questions."""
        found: dict[str, list[int]] = {}
        for place, request in enumerate(self.requests):
            found.setdefault(request.task, []).append(place)
        return found


def plan_file(name: str) -> Path:
    """The file of one of ``PLANS``."""
    return KEPT / "plan" / f"{name}.toml"


def load_suite(name: str, path: Path = REFERENCE) -> Suite:
    """What was kept of one of ``PLANS``."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    requests = [RequestFacts(**one) for one in kept["requests"]]
    return Suite(name, requests, kept["exits"][name])


def row_of(engine: str, found: Sequence[Sequence[Any]], suite: Suite) -> dict[str, Any]:
    """The row of an engine; ``found`` are its exits as in ``Suite.exits``."""
    same = sum(list(one) == other for one, other in zip(found, suite.exits, strict=True))
    return {
        "row": f"questions, greedy, with the exit of the replay of {suite.name}.toml: {engine}",
        "wanted": f">= {WANTED:.0%}",
        "reached": f"{same} of {len(found)}",
        "met": same >= WANTED * len(found),
    }


def others(found: Sequence[Sequence[Any]], suite: Suite) -> list[Any]:
    """Question, exit and that of the replay, where they differ."""
    return [
        [place, list(one), other]
        for place, (one, other) in enumerate(zip(found, suite.exits, strict=True))
        if list(one) != other
    ]


def keep(engine: str, rows: Sequence[Mapping[str, Any]], **details: Any) -> None:
    """Put the rows of one of ``ENGINES`` in the place of those that were kept of it."""
    file = RESULTS / f"{_KEPT}.json"
    OUT.mkdir(exist_ok=True)
    with (OUT / f"{_KEPT}.lock").open("w") as lock:  # checks may run at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        _keep(kept, engine, rows, details)


def _keep(
    kept: Mapping[str, Any], engine: str, rows: Sequence[Mapping[str, Any]], details: Any
) -> None:
    parts = {**kept.get("parts", {}), engine: {"code": CODE, **details, **made()}}
    known = [row for row in kept.get("rows", []) if row["engine"] != engine]
    known += [{**row, "engine": engine} for row in rows]
    known.sort(key=lambda row: ENGINES.index(row["engine"]))
    write_result(
        _KEPT,
        known,
        reproduce="bash runs/integrations/integrations.sh",
        seeds=[SEED],
        parts={name: parts[name] for name in ENGINES if name in parts},
    )
