"""Hybrid rules over a policy: check a file, explain what it does to a question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbudget.cli.arguments import Metadata, NameOrNone, TheQuestion, TheRules, metadata_of
from rlbudget.console import tell
from rlbudget.policy.dial import uncovered
from rlbudget.policy.folder import load_policies
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.rules_file import load_rules


@dataclass(frozen=True)
class RulesCheck:
    """Check a file of hybrid rules; mistakes are named with their lines."""

    rules: TheRules
    """TOML file."""
    policy: Annotated[list[Path], tyro.conf.arg(metavar="FOLDER ...")]
    """Policy folders that rules may name, by the folder's name; the first is the usual one."""

    def execute(self) -> None:
        """Load the file and count its rules."""
        rules = load_rules(self.rules, load_policies(self.policy))
        tell(f"{self.rules}: {len(rules.rules)} rules, no mistake")


@dataclass(frozen=True)
class RulesExplain:
    """Say which hybrid rules match a question and what follows from them."""

    rules: TheRules
    """TOML file."""
    question: TheQuestion
    """The question."""
    policy: Annotated[list[Path], tyro.conf.arg(metavar="FOLDER ...")]
    """Policy folders that rules may name, by the folder's name; the first is the usual one."""
    task: NameOrNone = ""
    """Task of the request."""
    metadata: Metadata = ()
    """KEY=VALUE of the request; a value that is a number counts as one."""

    def execute(self) -> None:
        """Load the file and explain."""
        policies = load_policies(self.policy)
        rules = load_rules(self.rules, policies)
        request = RequestFacts(self.question, self.task, metadata_of(self.metadata))
        for line in rules.explain(request):
            tell(line)
        usual = next(iter(policies.values())).default_price
        if (beyond := uncovered(rules.for_request(request), usual)) is not None:
            tell(f"at the usual token price of {usual:.3g}: {beyond}")
