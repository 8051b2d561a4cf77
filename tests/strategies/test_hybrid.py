from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from frozen_nets import FREE, PRICES, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table

from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import replay
from rlbudget.strategies.hybrid import HybridRules, RequestFacts
from rlbudget.strategies.rules_file import load_rules

PRICE = 1e-3
TABLE = make_table(80, seed=3)


def _policies() -> dict[str, Policy]:
    return {"usual": random_policy(FREE, seed=1), "other": random_policy(FREE, seed=5)}


def _rules(tmp_path: Path, text: str) -> HybridRules:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return load_rules(path, _policies())


def _stops(rules: HybridRules, requests: list[RequestFacts]) -> Any:
    return rules.replay(TABLE, requests, PRICE).stops


ASKED = [RequestFacts(f"question {i}", task="sum" if i % 2 else "word", metadata={"tier": i % 3})
         for i in range(len(TABLE))]  # fmt: skip


def test_no_rules_is_the_policy() -> None:
    alone = replay(_policies()["usual"], TABLE, PRICE).stops
    np.testing.assert_array_equal(_stops(HybridRules((), _policies()), ASKED), alone)
    assert (alone != NATURAL_END).sum() > 0


def test_full_matches_by_question_task_and_metadata_and_never_stops(tmp_path: Path) -> None:
    rules = _rules(
        tmp_path,
        """
[[rule]]
name = "a"
question = "question [1-3]$"
then = "full"
[[rule]]
name = "b"
task = "sum"
metadata = { tier = 2 }
then = "full"
""",
    )
    alone = replay(_policies()["usual"], TABLE, PRICE).stops
    stops = _stops(rules, ASKED)
    for i in range(len(TABLE)):
        matched = i in (1, 2, 3) or (i % 2 == 1 and i % 3 == 2)
        assert stops[i] == (NATURAL_END if matched else alone[i])


def test_minimum_and_maximum_bound_where_it_stops(tmp_path: Path) -> None:
    rules = _rules(tmp_path, '[[rule]]\nname = "x"\nmin_tokens = 24\nmax_tokens = 48\n')
    stops = _stops(rules, ASKED)
    for trace, stop in enumerate(stops.tolist()):
        tokens = TABLE.thinking_tokens[TABLE.offsets[trace] : TABLE.offsets[trace + 1]]
        if stop != NATURAL_END:
            assert 24 <= tokens[stop] <= 48
        else:
            assert not len(tokens) or tokens[-1] < 48


def test_prices_multiply_and_another_policy_may_be_named(tmp_path: Path) -> None:
    rules = _rules(
        tmp_path,
        """
[[rule]]
name = "dear"
price = 4.0
[[rule]]
name = "half"
price = 0.5
[[rule]]
name = "swap"
policy = "other"
""",
    )
    expected = replay(_policies()["other"], TABLE, 2 * PRICE).stops
    np.testing.assert_array_equal(_stops(rules, ASKED), expected)


def test_a_price_beyond_the_policy_is_served_at_its_end(tmp_path: Path) -> None:
    rules = _rules(tmp_path, '[[rule]]\nname = "x"\nprice = 1e9\n')
    expected = replay(_policies()["usual"], TABLE, PRICES[1]).stops
    np.testing.assert_array_equal(_stops(rules, ASKED), expected)


RULES = """
[[rule]]
name = "unsure"
signal = { entropy_mean = "> 0.3", margin_mean = "<= 3" }
tokens = "< 64"
then = "go on"
[[rule]]
name = "sure"
signal = { entropy_mean = "<= 0.3" }
tokens = ">= 16"
then = "stop"
[[rule]]
name = "late"
task = "sum"
min_tokens = 16
"""


@settings(max_examples=25)
@given(st.integers(0, len(TABLE) - 1))
def test_live_is_replay(trace: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rules = _rules(Path(folder), RULES)
    ruled = rules.for_request(ASKED[trace])
    rows = observe(TABLE.take([trace]), ruled.features)
    live = [ruled(row, token_price=PRICE).stop for row in rows]
    expected = live.index(True) if any(live) else NATURAL_END
    assert _stops(rules, ASKED)[trace] == expected


def test_going_on_wins_over_stopping(tmp_path: Path) -> None:
    rules = _rules(
        tmp_path,
        """
[[rule]]
name = "stop"
tokens = ">= 8"
then = "stop"
[[rule]]
name = "stay"
tokens = "< 40"
then = "go on"
""",
    )
    for trace, stop in enumerate(_stops(rules, ASKED).tolist()):
        tokens = TABLE.thinking_tokens[TABLE.offsets[trace] : TABLE.offsets[trace + 1]]
        late = np.flatnonzero(tokens >= 40)
        assert stop == (late[0] if len(late) else NATURAL_END)


def test_explain_names_lines_and_what_follows(tmp_path: Path) -> None:
    lines = _rules(tmp_path, RULES).explain(RequestFacts("x", task="sum"))
    assert lines == [
        "line 2: unsure: go on where thinking_tokens < 64 and entropy_mean > 0.3 and"
        " margin_mean <= 3",
        "line 7: sure: stop where thinking_tokens >= 16 and entropy_mean <= 0.3",
        "line 12: late: at least 16 tokens",
        "so: the policy decides at 1 x the token price, from 16 tokens on",
    ]
