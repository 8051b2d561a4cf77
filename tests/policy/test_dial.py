"""The dial: efforts, losses and money become prices; operating points rise with the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from frozen_nets import FREE, PRICES, policy_for, random_policy, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table
from trace_makers import traces_of

from rlbudget.agents.freeze import freeze, policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate
from rlbudget.policy.dial import EFFORT_NAMES, EFFORTS, Dial, Spot, beyond, certificates, uncovered
from rlbudget.policy.folder import Policy, load_policy, save_policy
from rlbudget.policy.operating import Swept, certified_points, choose_points, doubted
from rlbudget.policy.prices import nearest_price
from rlbudget.strategies.ensemble import ensemble
from rlbudget.strategies.hybrid import HybridRule, HybridRules, RequestFacts
from rlbudget.strategies.steered import steered
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import split_questions

POINTS = choose_points([Swept(1e-4, 0.0, 0.0, 0.1), Swept(1e-3, 0.02, 0.001, 0.5)], 1000)
WAYS: dict[str, Any] = {"token_price": 1e-3, "effort": "low", "max_em_loss": 0.01}


def pointed(**rest: Any) -> Policy:
    return random_policy(FREE, operating_points=POINTS, **rest)


sweeps = st.lists(
    st.tuples(st.floats(-0.2, 0.4), st.floats(0, 0.1), st.floats(-0.5, 0.9)), min_size=1,
    max_size=12,
).map(lambda rows: [Swept(1e-5 * 1.5**k, *row) for k, row in enumerate(rows)])  # fmt: skip


@given(swept=sweeps, questions=st.integers(1, 5000))
def test_an_effort_that_may_lose_more_has_no_lower_price(
    swept: list[Swept], questions: int
) -> None:
    points = choose_points(swept, questions)
    assert list(points) == list(EFFORTS)
    prices = [point["token_price"] for point in points.values()]
    assert prices == sorted(prices)
    at = {one.token_price: one for one in swept}
    for point in points.values():
        if point["token_price"]:
            chosen = at[point["token_price"]]
            assert doubted(chosen, questions) <= point["max_em_loss"] + 1e-9
            assert point["em_loss"] == chosen.em_loss
        assert not point["certified"]


@given(swept=sweeps, questions=st.integers(1, 5000), data=st.data())
def test_certified_points_rise_too(swept: list[Swept], questions: int, data: st.DataObject) -> None:
    """What is certified for a loss is for every greater one."""
    losses = sorted(EFFORTS.values())
    places = sorted(data.draw(st.lists(st.integers(0, len(swept) - 1), min_size=1, max_size=4)))
    certified = dict(
        zip(losses[-len(places) :], (swept[k].token_price for k in places), strict=True)
    )
    points = certified_points(swept, questions, certified)
    prices = [point["token_price"] for point in points.values()]
    assert prices == sorted(prices)
    for point in points.values():
        assert point["certified"] == (point["max_em_loss"] in certified)
        if point["certified"]:
            assert point["token_price"] == certified[point["max_em_loss"]]


def test_few_questions_that_lost_nothing_show_little() -> None:
    nothing = [Swept(1e-3, 0.0, 0.0, 0.5)]
    stopping = {
        n: [e for e, p in choose_points(nothing, n).items() if p["token_price"]]
        for n in (10, 75, 300)
    }
    assert stopping == {10: [], 75: ["low", "minimal"], 300: ["high", "medium", "low", "minimal"]}


def test_an_effort_is_the_price_of_its_point() -> None:
    policy = pointed()
    assert Dial(effort="medium").at(policy) == Spot(1e-4)
    assert Dial(effort="minimal").at(policy) == Spot(1e-3)
    assert Dial(effort="max").at(policy) == Spot(PRICES[0], "never")
    assert Dial(effort="none").at(policy) == Spot(PRICES[1], "at once")
    assert Dial(effort="none").at(random_policy(FREE)) == Spot(PRICES[1], "at once")


def test_an_unknown_effort_is_one_line_with_the_names() -> None:
    with pytest.raises(UserError) as refused:
        Dial(effort="hard")
    assert str(refused.value) == (
        "effort 'hard': it is one of none, minimal, low, medium, high, max"
    )
    assert EFFORT_NAMES == ("none", "minimal", "low", "medium", "high", "max")


def test_a_policy_without_points_says_to_freeze_again() -> None:
    with pytest.raises(UserError, match=r"no operating points.*freeze its run again") as refused:
        Dial(effort="medium").at(random_policy(FREE))
    assert "\n" not in str(refused.value)


def test_a_loss_is_served_at_the_largest_certified_one_below_it() -> None:
    rows = [{"max_em_loss": loss, "token_price": price}
            for loss, price in ((0.01, 2e-4), (0.005, 1e-4), (0.06, 5e-3))]  # fmt: skip
    policy = random_policy(FREE, calibration={**rows[0], "certified": rows})
    prices = [Dial(max_em_loss=x).price(policy) for x in (0.005, 0.007, 0.01, 0.059, 0.06, 0.5)]
    assert prices == [1e-4, 1e-4, 2e-4, 2e-4, 5e-3, 5e-3]
    for bare, said in ((random_policy(FREE), "rlbudget calibrate"), (policy, "smallest.*0.005")):
        with pytest.raises(UserError, match=said):
            Dial(max_em_loss=0.001).price(bare)
    old = random_policy(FREE, calibration=rows[0])
    assert Dial(max_em_loss=0.02).price(old) == 2e-4
    assert certificates(None) == []


@given(worth=st.floats(1e-6, 1e6), cost=st.floats(0, 1e6))
def test_money_is_served_at_the_nearest_price(worth: float, cost: float) -> None:
    price = Dial(answer_worth=worth, price_per_million=cost).price(random_policy(FREE))
    assert PRICES[0] <= price <= PRICES[1]
    assert price == pytest.approx(min(max(cost / 1e6 / worth, PRICES[0]), PRICES[1]))


@given(a=st.sampled_from(sorted(WAYS)), b=st.sampled_from(sorted(WAYS)))
def test_one_way_at_a_time(a: str, b: str) -> None:
    said = {a: WAYS[a], b: WAYS[b]}
    if a == b:
        assert not Dial(**said).silent
    else:
        with pytest.raises(UserError, match="say one of"):
            Dial(**said)


def test_points_leave_decisions_alone_and_folders_without_them_as_they_were(
    tmp_path: Path,
) -> None:
    bare, policy = random_policy(FREE), pointed()
    assert "operating_points" not in bare.config
    assert random_policy(FREE, operating_points={}).digest == bare.digest != policy.digest
    assert dict(policy.tensors).keys() == dict(bare.tensors).keys()
    save_policy(tmp_path / "policy", policy)
    assert load_policy(tmp_path / "policy") == policy
    assert load_policy(tmp_path / "policy").operating_points == POINTS
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "| max | 0.0% | never stops |" in card
    assert "| minimal | 6.0% | 0.001 | 2.0% | 50% | 1000 | no |" in card


def test_a_run_that_did_not_come_to_its_end_has_no_points(tmp_path: Path) -> None:
    write_run(tmp_path / "run", swept=None)
    assert policy_of_run(tmp_path / "run", unfinished=True).operating_points == {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("points")
    with TraceWriter(home / "traces") as writer:
        for trace in traces_of(make_table(400, seed=4)):
            writer.add(trace)
    split = split_questions(load_table(home / "traces"))
    config = PPOConfig(total_timesteps=24 * 256, n_envs=64, n_steps=4, batch_size=128)
    train(split.train, split.validation, config, home / "run")
    freeze(home / "run", home / "policy")
    return home


def test_a_training_ends_with_a_sweep_and_freezing_with_points(trained: Path) -> None:
    policy = load_policy(trained / "policy")
    swept = json.loads((trained / "run" / "run.json").read_text())["swept"]
    rows = [Swept(**row) for row in swept["prices"]]
    assert swept["questions"] == 60
    assert [rows[0].token_price, rows[-1].token_price] == pytest.approx(policy.price_range)
    assert policy.operating_points == choose_points(rows, 60)
    assert "swept" not in policy.config["trained"]


def test_calibration_certifies_what_it_can(trained: Path, tmp_path: Path) -> None:
    table = load_table(trained / "traces")
    save_policy(tmp_path / "policy", policy_for(table, "free"))
    policy = calibrate(
        tmp_path / "policy", trained / "traces", tmp_path / "certified", max_em_loss=0.5
    )
    found = policy.config["calibration"]["certified"]
    losses = [one["max_em_loss"] for one in found]
    prices = [one["token_price"] for one in found]
    assert losses == sorted(losses)
    assert prices == sorted(prices)
    assert losses[-1] == 0.5
    assert policy.default_price == prices[-1] == Dial(max_em_loss=0.5).price(policy)
    points = policy.operating_points
    assert {p["max_em_loss"] for p in points.values() if p["certified"]} == set(losses) - {0.5}
    efforts = [point["token_price"] for point in points.values()]
    assert efforts == sorted(efforts)


@settings(max_examples=20, deadline=None)
@given(effort=st.sampled_from(EFFORT_NAMES))
def test_every_effort_is_served_within_the_range(effort: str) -> None:
    spot = Dial(effort=effort).at(pointed())
    assert PRICES[0] <= spot.token_price <= PRICES[1]


def certified(**prices: float) -> Policy:
    """A policy with certificates: ``loss_in_thousandths=price``; the first is what was asked."""
    rows = [
        {"max_em_loss": int(name[1:]) / 1000, "token_price": price, "em_loss": 0.0}
        for name, price in prices.items()
    ]
    return random_policy(FREE, calibration={**rows[0], "certified": rows, "mode": "loss"})


def test_a_price_above_the_certified_one_is_said_to_be() -> None:
    policy = certified(l10=1e-4, l30=5e-4)
    assert beyond(policy, 1e-4) is None
    assert "a loss of 0.03 is certified there" in str(beyond(policy, 2e-4))
    assert beyond(policy, 2e-4, 0.03) is None
    assert "the bound on lost answers does not cover it" in str(beyond(policy, 6e-4, 0.03))
    assert beyond(random_policy(FREE), 1e-3) is None
    assert beyond(object(), 1e-3) is None


@given(factor=st.floats(0.1, 10), price=st.floats(1e-5, 1e-3))
def test_whatever_moves_the_price_beyond_the_certified_one_says_so(
    factor: float, price: float
) -> None:
    """Under rules, in an ensemble, behind a guard: the policy is told another price than asked."""
    policy = certified(l10=2e-4)
    told = nearest_price(price * factor, policy.price_range)
    rules = HybridRules((HybridRule("dear", 1, price=factor),), {"p": policy})
    over = [
        rules.for_request(RequestFacts("x")),
        ensemble([policy, policy], price_factors=[1e-9, factor]),
        steered(policy, Same(policy, factor)),
    ]
    for one in over:
        said = uncovered(one, price)
        assert (said is None) == (told <= 2e-4 * (1 + 1e-9)), (one, said)


class Same:
    """A strategy that asks what it stands over at the price times a factor."""

    def __init__(self, policy: Policy, factor: float) -> None:
        self.policy, self.factor = policy, factor

    def asks(self, token_price: float) -> list[tuple[Policy, float]]:
        price = nearest_price(token_price * self.factor, self.policy.price_range)
        return [(self.policy, price)]

    def stop_probabilities(self, observations: Any, token_price: float) -> Any:
        return self.policy.stop_probabilities(observations, token_price)

    def alone(self, observation: Any, token_price: float) -> float:
        return self.policy.alone(observation, token_price)


def test_a_rule_that_stops_nothing_moves_no_price() -> None:
    rules = HybridRules(
        (HybridRule("never", 1, then="full", price=9.0),), {"p": certified(l10=1e-4)}
    )
    assert uncovered(rules.for_request(RequestFacts("x")), 1e-4) is None
