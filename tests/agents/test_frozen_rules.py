"""Every tuned rule as a policy: it stops where the rule does and pays alike, live as in replay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic import make_table

from rlbudget.agents.clone import TriedRule, try_rules
from rlbudget.agents.frozen_rules import stops_from, tuned_to
from rlbudget.agents.rules import REPEAT_RULES, RULES, SAMPLING_RULES, TEXT_RULES
from rlbudget.agents.rules.unprobed import group_confidence
from rlbudget.agents.tuned_rule import OF_RULE, can_freeze, seen_by, tuned_rule, usable, why_not
from rlbudget.policy.folder import Policy, make_policy
from rlbudget.policy.observation import observe, preset_of
from rlbudget.policy.outcomes import charged_by, charges
from rlbudget.policy.own_memory import with_number
from rlbudget.policy.replay import replay
from rlbudget.policy.row_observer import RowObserver
from rlbudget.traces.table import TraceTable
from runs.quality.voters import POOLS, voted

PRICE = 1e-3
NAMES = {rule.name for rule in (*RULES, *REPEAT_RULES, *TEXT_RULES, *SAMPLING_RULES)}
PAID = ("confidence", "deer", "streak", "convergence", "dynasor", "eat", "halt")


def whole_table() -> TraceTable:
    """Traces with every signal that a rule looks at, some missing where some may be."""
    table = make_table(30, seed=4)
    m = len(table.thinking_tokens)
    rng = np.random.default_rng(7)
    asked = rng.random(len(table))[table.trace_of_row] < 0.7  # has answer options
    more = {
        "topk_mean": -rng.gamma(2.0, 1.5, m),
        "probe_tail": rng.beta(4.0, 0.5, m),
        "exit_entropy": rng.exponential(0.5, m) * rng.choice([0.01, 1.0], m),
        "answer_entropy": np.where(asked, rng.exponential(0.3, m), np.nan),
        "option_tokens": np.full(m, 3.0),
        "text_repeats": rng.choice([0.2, 1.0], m, p=[0.2, 0.8]),
        "text_claim_streak": rng.integers(0, 6, m).astype(np.float64),
        "text_conclusions": rng.integers(0, 3, m).astype(np.float64),
        "text_hedges": rng.integers(0, 3, m).astype(np.float64),
        "hedges": rng.integers(0, 2, m).astype(np.float64),
    }
    return dataclasses.replace(
        table,
        signals={**table.signals, **more, "token_repeats": np.linspace(0, 3, m) % 1},
        probe_hedged=rng.random(m) < 0.2,
    )


TABLES = (whole_table(), voted(POOLS[1], 10, 30, 2, seed=1))


def of_rule(name: str) -> tuple[TraceTable, list[TriedRule]]:
    for table in TABLES:
        tried = try_rules(table)
        if any(one.rule.name == name for one in tried):
            return table, tried
    raise AssertionError(f"no table for {name}")


def frozen(name: str, table: TraceTable, chosen: TriedRule) -> Policy:
    tuned = tuned_rule(name, table, [chosen], [0.0])
    return make_policy(
        tuned.tensors, features=tuned.features, preset=preset_of(tuned.features),
        price_range=(PRICE, PRICE),
    )  # fmt: skip


@pytest.mark.parametrize("name", OF_RULE)
def test_a_frozen_rule_stops_and_pays_as_the_rule_does_under_each_of_its_parameters(
    name: str,
) -> None:
    table, tried = of_rule(name)
    stopped = 0
    for one in tried:
        if one.rule.name != name or not usable(name, table, one.parameters):
            continue
        policy = frozen(name, table, one)
        found = replay(policy, table, PRICE)
        np.testing.assert_array_equal(found.stops, one.stops, err_msg=str(one.parameters))
        stopped += int((one.stops >= 0).sum())
        if name != "eat":  # which pays where nothing was recorded, too
            np.testing.assert_array_equal(found.outcome.tokens, one.outcome.tokens)
        assert (found.outcome.probe.sum() > 0) == (name in PAID)
    assert stopped > 0


@pytest.mark.parametrize("name", ["deer", "dynasor", "entropy", "deepconf", "eat", "halt", "loop"])
def test_a_frozen_rule_sees_live_what_it_sees_in_a_replay_and_makes_the_trial_answers_it_pays_for(
    name: str,
) -> None:
    table, tried = of_rule(name)
    for parameters in [one.parameters for one in tried if one.rule.name == name][::7]:
        features = seen_by(name, [parameters])
        whole = observe(table, features)
        paid = charges(table, charged_by(preset_of(features), table, features))
        for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
            observer = RowObserver(features)
            for row in range(start, end):
                signals = {key: float(column[row]) for key, column in table.signals.items()}
                made = observer.needs_probe(signals)
                if made:
                    assert paid[row] == table.probe_tokens[row]
                    given = (table.probe_answer[row], table.probe_confidence[row],
                             table.probe_hedged[row])  # fmt: skip
                    live = observer.update(int(table.thinking_tokens[row]), signals, *given)
                else:
                    assert name in ("eat", "halt") or not paid[row]
                    live = observer.update(int(table.thinking_tokens[row]), signals)
                np.testing.assert_array_equal(live, whole[row])


def test_every_rule_can_be_frozen_or_says_why_not_and_what_to_do_instead() -> None:
    for name in NAMES | {"logistic", "zelt"}:
        assert can_freeze(name) != bool(why_not(name)), name
        assert can_freeze(name) or ": " in str(why_not(name))
    assert set(OF_RULE) <= NAMES


def test_a_frozen_rule_makes_trial_answers_at_the_same_checkpoints_at_every_price() -> None:
    table, tried = of_rule("dynasor")
    prices = np.geomspace(1e-6, 2e-3, 9).tolist()
    own = tuned_to(table, tried, "dynasor", prices)
    stopping = [one for one in own if one.tried.rule.name == "dynasor"]
    assert stopping
    assert len({one.tried.parameters["every"] for one in stopping}) == 1
    assert len({one.parameters["every"] for one in tried if one.rule.name == "dynasor"}) > 1


def test_a_frozen_rule_looks_at_nothing_below_the_price_from_which_on_it_stops() -> None:
    table = TABLES[0]
    table = dataclasses.replace(  # a stop pays where an answer is worth nothing alone
        table, exit_exact_match=np.zeros(len(table.thinking_tokens))
    )
    tried = try_rules(table)
    prices = np.geomspace(1e-9, 2e-2, 9).tolist()
    own = tuned_to(table, tried, "confidence", prices)
    looks = [bool(one.looks) for one in own]
    assert looks == sorted(looks)
    assert not looks[0]
    assert looks[-1]
    first = stops_from(own, prices)
    assert first is not None
    assert prices[looks.index(True) - 1] < first < prices[looks.index(True)]
    never = [one for one in own if not one.looks]
    assert all(one.tried.outcome.probe.sum() == 0 for one in never)
    assert stops_from(never, prices[: len(never)]) == 2 * prices[len(never) - 1]
    assert stops_from(own[looks.index(True) :], prices[looks.index(True) :]) is None


def test_a_deer_of_tails_is_frozen_only_where_each_trial_answer_has_one() -> None:
    table, tried = of_rule("deer")
    tails = [one.parameters for one in tried if one.rule.name == "deer" and one.parameters["tail"]]
    assert tails
    assert all(usable("deer", table, tuned) for tuned in tails)
    gone = {**table.signals, "probe_tail": np.full(len(table.thinking_tokens), np.nan)}
    holey = dataclasses.replace(table, signals=gone)
    assert not any(usable("deer", holey, tuned) for tuned in tails)


@pytest.mark.parametrize("window", [1.0, 5.0, 8.0, 13.0, 64.0])
def test_the_confidence_of_a_group_is_that_of_the_rule_for_windows_below_a_stride_too(
    window: float,
) -> None:
    table = TABLES[0]
    seen = observe(table, (with_number("topk_mean.group", window),))[:, 0]
    np.testing.assert_allclose(seen, np.nan_to_num(group_confidence(table, window)), rtol=1e-5)
