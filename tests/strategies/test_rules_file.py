"""A file of rules: every spelling of the same rules, every mistake by its line, the page's file."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from frozen_nets import FREE, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.cli.main import parse
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.strategies.hybrid import HybridRule, HybridRules, RequestFacts
from rlbudget.strategies.rules_file import load_rules
from rlbudget.strategies.toml_lines import lines_of

POLICIES: dict[str, Policy] = {
    "usual": random_policy(FREE, seed=1),
    "careful": random_policy(FREE, seed=5),
}
PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


def load(text: str) -> HybridRules:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rules.toml"
        path.write_bytes(text.encode())
        return load_rules(path, POLICIES)


def known(rule: HybridRule) -> tuple[Any, ...]:
    """A rule without its place."""
    pattern = rule.question.written if rule.question else None
    return (rule.name, pattern, rule.task, rule.metadata, rule.live, rule.then,
            rule.min_tokens, rule.max_tokens, rule.price, rule.policy)  # fmt: skip


# What rules say, as data; names and texts hold what a reader by lines would stumble over.
TEXTS = st.sampled_from(
    ["a", "[[rule]]", "x\n[[rule]]\ny", "'''", '"q"', "a # b", "k = 1", "ü ✓", "\\"]
)
NAMES = st.sampled_from(["tier", "a b", "x.y", "ü", "rule", "then"])
BEGINS = st.fixed_dictionaries(
    {"name": TEXTS},
    optional={
        "question": st.sampled_from(["(?i)contract", "[+]", "\\d+", "#"]),
        "task": TEXTS,
        "metadata": st.dictionaries(NAMES, TEXTS | st.integers(0, 9) | st.booleans(), min_size=1),
    },
)
WHOLE = st.fixed_dictionaries(
    {"then": st.sampled_from(["full", "stop"])},
    optional={
        "min_tokens": st.integers(0, 8),
        "max_tokens": st.integers(8, 99),
        "price": st.sampled_from([0.5, 2]),
        "policy": st.sampled_from(sorted(POLICIES)),
    },
)
LIVE = st.fixed_dictionaries(
    {
        "signal": st.dictionaries(
            st.sampled_from(["entropy_mean", "margin_mean"]),
            st.sampled_from(["> 1.5", "<= 3", "< 1e-2"]),
            min_size=1,
        ),
        "then": st.sampled_from(["go on", "stop"]),
    },
    optional={"tokens": st.sampled_from([">= 16", "< 64"])},
)
RULE = st.builds(lambda one, other: {**one, **other}, BEGINS, WHOLE | LIVE)


class Speller:
    """Writes the same rules in one of the spellings that TOML has."""

    def __init__(self, choose: Any) -> None:
        self.choose = choose

    def one_of(self, *ways: str) -> str:
        return str(self.choose(st.sampled_from(ways)))

    def text(self, value: str) -> str:
        basic = json.dumps(value)
        ways = [basic, f'""{basic}""']
        if not set(value) & set("'\n"):
            ways += [f"'{value}'", f"'''{value}'''", f"'''\n{value}'''"]
        return self.one_of(*ways)

    def key(self, name: str) -> str:
        ways = [json.dumps(name), f"'{name}'"]
        if re.fullmatch(r"[A-Za-z0-9_-]+", name):
            ways += [name, name]
        return self.one_of(*ways)

    def dotted(self, *names: str) -> str:
        return self.one_of(".", " . ").join(map(self.key, names))

    def inline(self, table: Mapping[str, Any]) -> str:
        pairs = [f"{self.key(k)}{self.one_of('=', ' = ')}{self.value(v)}" for k, v in table.items()]
        return "{" + self.one_of(", ", ",").join(pairs) + "}"

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            return self.inline(value)
        if isinstance(value, str):
            return self.text(value)
        return str(value).lower()

    def end(self) -> str:
        return self.one_of("\n", "\n\n", " # [[rule]]\n", "\r\n", "\n  ")

    def block(self, rule: Mapping[str, Any]) -> str:
        """``[[rule]]``, its tables inline, by dotted keys or below it."""
        head = self.one_of("[[{}]]", "[[ {} ]]", "[[{} ]]").format(self.key("rule"))
        here, below = head + self.end(), ""
        for key, value in rule.items():
            way = self.one_of("inline", "dotted", "below") if isinstance(value, dict) else "inline"
            if way == "inline":
                here += f"{self.key(key)} = {self.value(value)}{self.end()}"
            elif way == "dotted":
                for name, inner in value.items():
                    here += f"{self.dotted(key, name)} = {self.value(inner)}{self.end()}"
            else:
                below += f"[{self.dotted('rule', key)}]{self.end()}"
                for name, inner in value.items():
                    below += f"{self.key(name)} = {self.value(inner)}{self.end()}"
        return here + below

    def file(self, rules: list[dict[str, Any]]) -> str:
        if self.one_of("blocks", "array") == "blocks":
            return "".join(map(self.block, rules))
        comma = self.one_of(", ", ",\n", ", # [[rule]]\n")
        last = self.one_of("", ",", ",\n")
        return f"{self.key('rule')} = [{comma.join(map(self.inline, rules))}{last}]"


@settings(max_examples=100)
@given(st.lists(RULE, min_size=1, max_size=4), st.data())
def test_every_spelling_of_the_same_rules_gives_the_same_rules(
    said: list[dict[str, Any]], data: st.DataObject
) -> None:
    text = Speller(data.draw).file(said)
    assert tomllib.loads(text.replace("\r\n", "\n")) == {"rule": said}
    plain = Speller(lambda _: pytest.fail("nothing to choose"))
    plain.one_of = lambda *ways: ways[0]  # type: ignore[method-assign]
    found, expected = load(text).rules, load(plain.file(said)).rules
    assert [known(rule) for rule in found] == [known(rule) for rule in expected]
    assert [rule.name for rule in found] == [rule["name"] for rule in said]
    lines = text.split("\n")
    assert [r.line for r in found] == sorted(r.line for r in found)
    assert all(re.search(r"rule|\{", lines[rule.line - 1]) for rule in found)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = set()
    for key, one in inner:
        found |= {(*path, key)} | (
            paths(one, (*path, key)) if isinstance(one, dict | list) else set()
        )
    return found


@settings(max_examples=80)
@given(st.lists(RULE, min_size=1, max_size=4), st.data())
def test_every_key_has_a_line_and_it_is_the_one_that_holds_the_key(
    said: list[dict[str, Any]], data: st.DataObject
) -> None:
    text = Speller(data.draw).file(said)
    lines = lines_of(text)
    assert set(lines) == paths({"rule": said})
    for path, line in lines.items():
        key = path[-1]
        if isinstance(key, str):
            assert (
                key in text.split("\n")[line - 1] or json.dumps(key) in text.split("\n")[line - 1]
            )


def test_lines_are_found_in_a_text_that_has_everything() -> None:
    text = """# top
a.b = 1979-05-27 07:32:00 # a date
a.c = [1, [2,
  3], { x = 1, y.z = [ ] }] # nested
"" = '''
[no]
''''
"q\\"r" = \"\"\"
[[no]] \\\"\"\"
k = 1\"\"\"\"
[ d . "e.f" ]
g = {}
[[h]]
[[h.i]]
j = inf
[[h.i]]
[h.i.k]
l = -1_0
[[h]]
i = 'm'
"""

    lines = lines_of(text)
    assert set(lines) == paths(tomllib.loads(text))
    wanted: dict[tuple[str | int, ...], int] = {
        ("a",): 2, ("a", "c"): 3, ("a", "c", 1, 1): 4, ("a", "c", 2, "y", "z"): 4, ("",): 5,
        ('q"r',): 8, ("d", "e.f"): 11, ("d", "e.f", "g"): 12, ("h", 0): 13, ("h", 0, "i", 0): 14,
        ("h", 0, "i", 0, "j"): 15, ("h", 0, "i", 1): 16, ("h", 0, "i", 1, "k"): 17,
        ("h", 0, "i", 1, "k", "l"): 18, ("h", 1): 19, ("h", 1, "i"): 20,
    }  # fmt: skip
    assert {path: lines[path] for path in wanted} == wanted


PIECES = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    '"',
    '"""',
    "'",
    "'''",
    "\\",
    "#",
    "=",
    ",",
    ".",
    " ",
    "\n",
    "a",
    "b",
    "1",
    "a = 1",
    "\n[a]\n",
    "\n[[b]]\n",
    "x = [",
    "y = {z = 1",
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_lines_of_whatever_is_read_are_those_of_its_keys(text: str) -> None:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines_of(text)) == paths(content)


MISTAKES = [
    ('[[rule]]\nname = "a"\nthen = "maybe"', 3, "a: then is"),
    ('[[rule]]\nname = "a"\n', 2, "does nothing"),
    ('[[rule]]\nthen = "full"', 1, "rule 1: a rule needs a name"),
    ('[[rule]]\nname = ""\nthen = "full"', 2, "rule 1: a rule needs a name"),
    ('[[rule]]\nname = 3\nthen = "full"', 2, "rule 1: name is a text, not 3"),
    ('\n[[rule]]\nname = "a"\nquestion = "("\nthen = "full"', 4, "regular expression"),
    ('[[rule]]\nname = "a"\nquestion = "a{99999999999999999999}"\nthen = "full"', 3, "regular"),
    ('[[rule]]\nname = "a"\ntask = ["x"]\nthen = "full"', 3, "task is a text"),
    ('[[rule]]\nname = "a"\npolicy = "none"', 3, "no policy 'none'; there are: usual, careful"),
    ('[[rule]]\nname = "a"\npolicy = ["usual"]', 3, "policy is a text"),
    ('[[rule]]\nname = "a"\nprice = -1', 3, "factor above 0"),
    ('[[rule]]\nname = "a"\nprice = inf', 3, "factor above 0"),
    ('[[rule]]\nname = "a"\nprice = true', 3, "factor above 0"),
    ('[[rule]]\nname = "a"\nmin_tokens = true', 3, "number of tokens"),
    ('[[rule]]\nname = "a"\nmax_tokens = "x"', 3, "number of tokens"),
    ('[[rule]]\nname = "a"\nmax_tokens = 3\nmin_tokens = 4', 4, "4 is above max_tokens 3"),
    ('[[rule]]\nname = "a"\ntokens = "many"\nthen = "stop"', 3, "compared like"),
    ('[[rule]]\nname = "a"\ntokens = 5\nthen = "stop"', 3, "compared like"),
    ('[[rule]]\nname = "a"\ntokens = "< 3"\nprice = 2', 4, "whole requests"),
    ('[[rule]]\nname = "a"\ntokens = "< 3"\nthen = "full"', 4, "whole requests"),
    ('[[rule]]\nname = "a"\nthen = "go on"', 3, "whole request"),
    ('[[rule]]\nname = "a"\nthen = "stop"\nsignal = { nothing = "> 1" }', 4, "does not see"),
    ('[[rule]]\nname = "a"\nthen = "stop"\n[rule.signal]\nentropy_mean = 2', 5, "compared like"),
    ('[[rule]]\nname = "a"\nthen = "stop"\nsignal = {}', 4, "at least one key"),
    ('[[rule]]\nname = "a"\nthen = "full"\nmetadata = "x"', 4, "at least one key"),
    ('[[rule]]\nname = "a"\nthen = "full"\n[rule.metadata]\nday = 2026-01-01', 5, "metadata day"),
    ('[[rule]]\nname = "a"\nthen = "full"\nmetadata.x = nan', 4, "metadata x"),
    ('[[rule]]\nname = "a"\nprize = 2', 3, "a rule has"),
    ("[other]\nx = 1", 1, "other: unknown"),
    ('[[rule]]\nname = "a"\nthen = "full"\n[Rule]\nx = 1', 4, "Rule: unknown"),
    ('x = 1\n[[rule]]\nname = "a"\nthen = "full"', 1, "x: unknown"),
    ('[[rule]]\nname = "a', 2, "string"),
    ("", 1, "there is no rule"),
    ("# nothing\n", 1, "there is no rule"),
    ("\nrule = []", 2, "there is no rule"),
    ("rule = 5", 1, "not a list of tables"),
    ('rule = "ab"', 1, "not a list of tables"),
    ("\nrule = [1]", 2, "not a list of tables"),
    ('[rule]\nname = "a"\nthen = "full"', 1, "not a list of tables"),
    ('[[rule]]\nname = """a\n[[rule]]\n"""\nthen = "full"\n[[ rule ]]\nname = "b"\nthen = "stopp"',
     8, "b: then is"),
    ('rule = [\n {name = "a", then = "full"},\n {name = "b", then = "x"}]', 3, "b: then is"),
    ('rule = [{then = "full"}]', 1, "rule 1: a rule needs a name"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "said"), MISTAKES)
def test_mistakes_are_named_with_their_line(text: str, line: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(text)
    message = str(caught.value)
    assert f"rules.toml:{line}:" in message
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, r"cannot read the rules .*rules\.toml"),
     (b"a = 1\n\xff\xfe", r"rules\.toml:2: .*UTF-8"),
     (b"\n" + b"a" * 10_001, r"rules\.toml:2: a line of more than 10,000 bytes"),
     (b"\n" * 2**20 + b"a", r"rules\.toml:1048577: the file has more than 1,048,576 bytes"),
     (b"\na = " + b"9" * 5000, r"rules\.toml:2: a number of too many digits"),
     (b"\na = 0x" + b"f" * 17, r"rules\.toml:2: a whole number beyond 64 bits"),
     (b"\na = " + b"[" * 40 + b"]" * 40, r"rules\.toml:2: nested more than 30 deep"),
     (b"\na = " + b"[" * 4000, r"rules\.toml:\d: ")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "rules.toml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_rules(tmp_path / "rules.toml", POLICIES)


def page(language: str) -> str:
    block = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    return str(block)


def test_the_file_of_the_page_is_explained_as_the_page_says() -> None:
    rules = load(page("toml"))
    asked = RequestFacts(
        "Is the liability of 2 + 3 parties limited?", task="arithmetic", metadata={"tier": "gold"}
    )
    assert "\n".join(rules.explain(asked)) + "\n" == page("text")


def test_the_file_of_the_page_does_what_the_page_says() -> None:
    rules = load(page("toml"))
    usual = rules.ruling([rule for rule in rules.rules if rule.matches(RequestFacts("1 + 1"))])
    assert usual.policy is POLICIES["usual"]
    assert (usual.full, usual.least, usual.price_factor) == (False, 0, 1)
    code = rules.ruling([r for r in rules.rules if r.matches(RequestFacts("sort", task="code"))])
    assert code.policy is POLICIES["careful"]
    sums = RequestFacts("1 + 1", task="arithmetic", metadata={"tier": "gold"})
    ruling = rules.ruling([rule for rule in rules.rules if rule.matches(sums)])
    assert (ruling.least, ruling.most, ruling.price_factor) == (32, 256, 0.5)
    assert rules.ruling([r for r in rules.rules if r.matches(RequestFacts("A Contract"))]).full


def test_the_commands_of_the_page_are_commands() -> None:
    lines = page("bash").splitlines()
    names = [type(parse(shlex.split(line)[1:])).__name__ for line in lines]
    assert names == ["RulesCheck", "RulesExplain", "Decode", "Evaluate"]


@pytest.mark.parametrize("key", ["question", "task", "metadata", "tokens", "signal", "then",
                                 "min_tokens", "max_tokens", "price", "policy"])  # fmt: skip
def test_the_page_names_every_key(key: str) -> None:
    assert re.search(rf"\|[^|\n]*`{key}[` ]", PAGE)
