"""Reads hybrid rules from a TOML file; a mistake is one line, ``FILE:LINE: what is wrong``.

The rules are taken from what ``tomllib`` reads, so every valid spelling of the same file gives the
same rules. Nothing is passed over: a file without a rule, an unknown key and a condition that can
never hold are mistakes. What a rule may say is in ``docs/rules.md``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.strategies.hybrid import Comparison, HybridRule, HybridRules
from rlbudget.strategies.steered import AnyPolicy
from rlbudget.strategies.toml_lines import line_of, lines_of

KEYS = ("name", "question", "task", "metadata", "tokens", "signal", "then", "min_tokens",
        "max_tokens", "price", "policy")  # fmt: skip
EFFECTS = ("then", "min_tokens", "max_tokens", "price", "policy")
MOST_TOKENS = 1_000_000_000

_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


def load_rules(path: Path | str, policies: Mapping[str, AnyPolicy]) -> HybridRules:
    """Read a file of rules; ``policies`` are those it may name, the first is used by default.

    Raises ``UserError`` (``FILE:LINE: what is wrong``) for anything that is not a rule.
    """
    if not policies:
        raise UserError("rules need at least one policy")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the rules {path}: {error}") from None
    content = _parsed(path, text)
    lines = lines_of(text)
    for key in content:
        if key != "rule":
            line = line_of(lines, key)
            raise UserError(f"{path}:{line}: {key}: unknown; a file of rules holds [[rule]] alone")
    entries = content.get("rule", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        line = line_of(lines, "rule")
        raise UserError(f"{path}:{line}: rule is not a list of tables; begin each with [[rule]]")
    if not entries:
        line = line_of(lines, "rule")
        raise UserError(f"{path}:{line}: there is no rule; begin each with [[rule]]")
    rules = [
        _Entry(path, number, entry, lines, policies).rule() for number, entry in enumerate(entries)
    ]
    return HybridRules(tuple(rules), dict(policies))


def _parsed(path: Path | str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found.group(1)) if found else len(text.splitlines())
        raise UserError(f"{path}:{line}: {str(error).split(' (at ')[0]}") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One table of the file, not yet known to be a rule."""

    file: Path | str
    number: int
    """from 0"""
    said: Mapping[str, Any]
    lines: Mapping[tuple[str | int, ...], int]
    policies: Mapping[str, AnyPolicy]

    def rule(self) -> HybridRule:
        """The rule that it is; raises ``UserError`` where it is none."""
        for key in self.said:
            if key not in KEYS:
                raise self._bad(f"{key}: a rule has {', '.join(KEYS)}", key)
        if not self._text("name"):
            raise self._bad("a rule needs a name", "name")
        if not any(key in self.said for key in EFFECTS):
            raise self._bad(f"it does nothing; give it one of {', '.join(EFFECTS)}", "name")
        rule = HybridRule(
            name=self.said["name"],
            line=line_of(self.lines, "rule", self.number),
            question=self._question(),
            task=self._text("task"),
            metadata=self._metadata(),
            live=self._live(),
            then=self._then(),
            min_tokens=self._tokens("min_tokens"),
            max_tokens=self._tokens("max_tokens"),
            price=self._price(),
            policy=self._policy(),
        )
        self._fits_together(rule)
        return rule

    def _fits_together(self, rule: HybridRule) -> None:
        least, most = rule.min_tokens, rule.max_tokens
        if least is not None and most is not None and least > most:
            raise self._bad(f"min_tokens {least} is above max_tokens {most}", "min_tokens")
        if not rule.live:
            if rule.then == "go on":
                said = 'for a whole request say "full"; "go on" needs tokens or signal'
                raise self._bad(said, "then")
            return
        for key in EFFECTS[1:]:
            if key in self.said:
                raise self._bad(f"{key} is for whole requests: leave out tokens and signal", key)
        if rule.then == "full":
            said = '"full" is for whole requests; at a checkpoint say "go on"'
            raise self._bad(said, "then")

    def _text(self, key: str) -> str | None:
        value = self.said.get(key)
        if value is not None and not isinstance(value, str):
            raise self._bad(f"{key} is a text, not {value!r}", key)
        return value

    def _table(self, key: str) -> Mapping[str, Any]:
        value = self.said.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            raise self._bad(f"{key} is a table with at least one key, not {value!r}", key)
        return value

    def _then(self) -> Any:
        value = self._text("then")
        if value not in (None, "full", "go on", "stop"):
            raise self._bad(f'then is "full", "go on" or "stop", not {value!r}', "then")
        return value

    def _question(self) -> re.Pattern[str] | None:
        value = self._text("question")
        try:
            return None if value is None else re.compile(value)
        except (re.error, OverflowError) as error:
            raise self._bad(f"not a regular expression: {error}", "question") from None

    def _metadata(self) -> Mapping[str, Any]:
        table = self._table("metadata")
        for key, value in table.items():
            if not isinstance(value, str | int | float) or value != value:
                said = f"metadata {key} is a text, a number, true or false, not {value!r}"
                raise self._bad(said, "metadata", key)
        return dict(table)

    def _tokens(self, key: str) -> int | None:
        value = self.said.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
            said = f"{key} is a number of tokens from 0 to {MOST_TOKENS:,}, not {value!r}"
            raise self._bad(said, key)
        return value

    def _price(self) -> float | None:
        value = self.said.get("price")
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (value > 0 and isfinite(value)):
            raise self._bad(f"price is a factor above 0, not {value!r}", "price")
        return float(value)

    def _policy(self) -> str | None:
        value = self._text("policy")
        if value is not None and value not in self.policies:
            raise self._bad(f"no policy {value!r}; there are: {', '.join(self.policies)}", "policy")
        return value

    def _live(self) -> tuple[Comparison, ...]:
        tokens = self.said.get("tokens")
        found = [] if tokens is None else [self._compared("thinking_tokens", tokens, "tokens")]
        for name, said in self._table("signal").items():
            found.append(self._compared(name, said, "signal", name))
        return tuple(found)

    def _compared(self, feature: str, said: Any, *path: str) -> Comparison:
        found = _COMPARISON.fullmatch(said) if isinstance(said, str) else None
        if found is None:
            raise self._bad(f'{path[-1]} is compared like "> 1.5", not {said!r}', *path)
        for called, policy in self.policies.items():
            if feature not in policy.features:
                raise self._bad(f"the policy {called} does not see {path[-1]!r}", *path)
        return Comparison(feature, found.group(1), float(found.group(2)))

    def _bad(self, said: str, *path: str) -> UserError:
        name = self.said.get("name")
        called = name if isinstance(name, str) and name else f"rule {self.number + 1}"
        line = line_of(self.lines, "rule", self.number, *path)
        return UserError(f"{self.file}:{line}: {' '.join(called.split())}: {said}")
