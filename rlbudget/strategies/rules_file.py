"""Reads hybrid rules from a TOML file; a mistake is one line, ``FILE:LINE: what is wrong``.

The rules are taken from what ``tomllib`` reads, so every valid spelling of the same file gives the
same rules. Nothing is ignored: a file without a rule, an unknown key and a condition that can never
hold are mistakes. What a rule may say is in ``docs/rules.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.strategies.hybrid import Comparison, HybridRule, HybridRules
from rlbudget.strategies.steered import AnyPolicy
from rlbudget.strategies.toml_lines import TomlFile, read_toml
from rlbudget.tasks.patterns import Pattern

MOST_TOKENS = 1_000_000_000
_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


_TEXT = (lambda value: isinstance(value, str), "a text")
_TABLE = (lambda value: isinstance(value, dict) and bool(value), "a table with at least one key")
_COUNT = (
    lambda value: type(value) is int and 0 <= value <= MOST_TOKENS,
    f"a number of tokens from 0 to {MOST_TOKENS:,}",
)
KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "question": _TEXT,
    "task": _TEXT,
    "metadata": _TABLE,
    "tokens": (lambda value: True, "see _compared"),
    "signal": _TABLE,
    "then": (("full", "go on", "stop").__contains__, '"full", "go on" or "stop"'),
    "min_tokens": _COUNT,
    "max_tokens": _COUNT,
    "price": (
        lambda value: type(value) in (int, float) and 0 < value < 1e300,
        "a factor above 0",
    ),
    "policy": _TEXT,
}
"""What a rule may say: key -> whether a value fits, and what it must be."""
EFFECTS = ("then", "min_tokens", "max_tokens", "price", "policy")


def load_rules(path: Path | str, policies: Mapping[str, AnyPolicy]) -> HybridRules:
    """Read a file of rules; ``policies`` are those it may name, the first is used by default.

    Raises ``UserError`` (``FILE:LINE: what is wrong``) for anything that is not a rule.
    """
    if not policies:
        raise UserError("rules need at least one policy")
    file = read_toml(path, "the rules")
    for key in file.content:
        if key != "rule":
            raise file.wrong(f"{key}: unknown; a file of rules holds [[rule]] alone", key)
    entries = file.content.get("rule", [])
    tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not entries or not tables:
        said = "there is no rule" if tables else "rule is not a list of tables"
        raise file.wrong(f"{said}; begin each with [[rule]]", "rule")
    rules = [_Entry(file, number, each, policies).rule() for number, each in enumerate(entries)]
    return HybridRules(tuple(rules), dict(policies))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One table of the file, not yet known to be a rule."""

    file: TomlFile
    number: int
    """from 0"""
    said: Mapping[str, Any]
    policies: Mapping[str, AnyPolicy]

    def rule(self) -> HybridRule:
        """The rule that it is; raises ``UserError`` where it is none."""
        said = self.said
        for key, value in said.items():
            if key not in KEYS:
                raise self._bad(f"{key}: a rule has {', '.join(KEYS)}", key)
            fits, wanted = KEYS[key]
            if not fits(value):
                raise self._bad(f"{key} is {wanted}, not {value!r}", key)
        if not said.get("name"):
            raise self._bad("a rule needs a name", "name")
        if not any(key in said for key in EFFECTS):
            raise self._bad(f"it does nothing; give it one of {', '.join(EFFECTS)}", "name")
        for key, value in said.get("metadata", {}).items():
            if not isinstance(value, str | int | float) or value != value:
                wrong = f"metadata {key} is a text, a number, true or false, not {value!r}"
                raise self._bad(wrong, "metadata", key)
        policy = said.get("policy")
        if policy is not None and policy not in self.policies:
            there = ", ".join(self.policies)
            raise self._bad(f"no policy {policy!r}; there are: {there}", "policy")
        rule = HybridRule(
            name=said["name"],
            line=self.file.line("rule", self.number),
            question=self._question(),
            task=said.get("task"),
            metadata=dict(said.get("metadata", {})),
            live=self._live(),
            then=said.get("then"),
            min_tokens=said.get("min_tokens"),
            max_tokens=said.get("max_tokens"),
            price=said.get("price"),
            policy=policy,
        )
        self._check_together(rule)
        return rule

    def _check_together(self, rule: HybridRule) -> None:
        least, most = rule.min_tokens, rule.max_tokens
        if least is not None and most is not None and least > most:
            raise self._bad(f"min_tokens {least} is above max_tokens {most}", "min_tokens")
        if not rule.live and rule.then == "go on":
            raise self._bad(
                'for a whole request say "full"; "go on" needs tokens or signal', "then"
            )
        for key in EFFECTS[1:]:
            if rule.live and key in self.said:
                raise self._bad(f"{key} is for whole requests: leave out tokens and signal", key)
        if rule.live and rule.then == "full":
            raise self._bad('"full" is for whole requests; at a checkpoint say "go on"', "then")

    def _question(self) -> Pattern | None:
        try:
            return Pattern(self.said["question"]) if "question" in self.said else None
        except ValueError as error:
            raise self._bad(f"not a regular expression: {error}", "question") from None

    def _live(self) -> tuple[Comparison, ...]:
        live = [self._compared(self.said["tokens"], "tokens")] if "tokens" in self.said else []
        signals = self.said.get("signal", {})
        live += [self._compared(said, "signal", name) for name, said in signals.items()]
        return tuple(live)

    def _compared(self, said: Any, *path: str) -> Comparison:
        found = _COMPARISON.fullmatch(said) if isinstance(said, str) else None
        if found is None:
            raise self._bad(f'{path[-1]} is compared like "> 1.5", not {said!r}', *path)
        feature = "thinking_tokens" if path == ("tokens",) else path[-1]
        for called, policy in self.policies.items():
            if feature not in policy.features:
                raise self._bad(f"the policy {called} does not see {path[-1]!r}", *path)
        return Comparison(feature, found.group(1), float(found.group(2)))

    def _bad(self, said: str, *path: str) -> UserError:
        name = self.said.get("name")
        called = name if isinstance(name, str) and name else f"rule {self.number + 1}"
        return self.file.wrong(f"{' '.join(called.split())}: {said}", "rule", self.number, *path)
