"""The cascade: trained to a known optimum, frozen, saved, live as in replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen_nets import policy_for, random_tensors, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import make_pair
from synthetic import tabular_table

from rlbudget.agents.cascade import train_cascade
from rlbudget.agents.config import PPOConfig
from rlbudget.errors import UserError
from rlbudget.policy.cascade import (
    CONTINUE,
    ESCALATE,
    STOP,
    Cascade,
    CascadeRequest,
    cascade_features,
    choose,
    load_cascade,
    make_cascade,
    save_cascade,
)
from rlbudget.policy.handover import in_large_tokens, served
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import utility
from rlbudget.policy.replay import replay
from rlbudget.policy.replay_cascade import act, replay_cascade
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.traces.pairs import Pair, pair_tables, with_natural_end

PAIR = make_pair(50, seed=5)
NODES = with_natural_end(PAIR.small)
PRICES = (1e-4, 1e-2)
PRICE = 1e-3
LARGE_POLICY = policy_for(PAIR.large, "free")
LARGE = served(LARGE_POLICY, PAIR.large, PRICE).outcome


def random_cascade(seed: int = 0, *, bias: tuple[float, float, float] = (1.0, 0, 0)) -> Cascade:
    """A network that nobody trained and that says all three things."""
    features = cascade_features(PAIR.small)
    seen = observe(NODES, features)
    tensors = random_tensors(len(features), seed, hidden=(16,), actions=3)
    tensors |= {"obs_mean": seen.mean(axis=0), "obs_std": seen.std(axis=0) + 1e-2}
    tensors["action_net.weight"] *= 4
    tensors["action_net.bias"] = np.array(bias, dtype=np.float32)
    return make_cascade(tensors, features=features, price_range=PRICES, ratio=0.25, clip=5.0)


CASCADE = random_cascade()


def live(cascade: Cascade, pair: Pair, trace: int, price: float) -> tuple[int, bool]:
    """Where a request is left and whether it is handed over, decision by decision."""
    table = pair.small
    request = CascadeRequest(cascade, token_price=price, question="?")
    start, end = table.offsets[trace : trace + 2]
    for row in range(start, end):
        signals = {name: float(column[row]) for name, column in table.signals.items()}
        decision = request.checkpoint(signals, int(table.thinking_tokens[row]))
        assert decision.stop == (decision.action == STOP)
        if decision.action != CONTINUE:
            return int(row - start), decision.escalate
    decision = request.natural_end(int(table.final_thinking_tokens[trace]))
    assert decision.action in (STOP, ESCALATE)
    return int(end - start), decision.escalate


def test_live_is_replay() -> None:
    done = replay_cascade(CASCADE, PAIR, PRICE, LARGE)
    ended = done.ends == PAIR.small.lengths
    for kind in (done.escalated & ~ended, ~done.escalated & ~ended, ended):
        assert kind.any()
    for trace in range(len(PAIR)):
        assert live(CASCADE, PAIR, trace, PRICE) == (done.ends[trace], done.escalated[trace])


def test_one_call_is_a_row_of_many() -> None:
    seen = observe(NODES, CASCADE.features)[:200]
    many = CASCADE.chances(seen, PRICE)
    np.testing.assert_allclose(many.sum(axis=1), 1)
    actions = CASCADE.actions(seen, PRICE)
    for k, row in enumerate(seen):
        decision = CASCADE(row, token_price=PRICE)
        assert decision.chances == tuple(many[k])
        assert decision.action == actions[k]


def test_at_the_natural_end_going_on_counts_as_accepting() -> None:
    chances = np.array([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0]])
    assert choose(chances, np.array([False] * 3)).tolist() == [ESCALATE, ESCALATE, CONTINUE]
    assert choose(chances, np.array([True] * 3)).tolist() == [STOP, ESCALATE, STOP]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), log_price=st.floats(-4, -2))
def test_a_cascade_that_never_escalates_is_the_small_model(seed: int, log_price: float) -> None:
    price, policy = 10**log_price, policy_for(PAIR.small, "free", seed)
    stops = replay(policy, PAIR.small, price)
    actions = np.zeros(len(NODES.thinking_tokens), dtype=np.int64)
    stopped = np.flatnonzero(stops.stops >= 0)
    actions[NODES.offsets[stopped] + stops.stops[stopped]] = STOP
    done = act(NODES, PAIR.ratio, actions, LARGE)
    alone = in_large_tokens(stops.outcome, PAIR.ratio)
    assert not done.escalated.any()
    for name in ("exact_match", "thinking", "probe", "answer"):
        np.testing.assert_allclose(getattr(done.outcome, name), getattr(alone, name), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.5), log_price=st.floats(-5, -1))
def test_the_oracle_is_never_beaten(seed: int, share: float, log_price: float) -> None:
    price = 10**log_price
    chances = [1 - share, share / 2, share / 2]
    actions = np.random.default_rng(seed).choice(3, len(NODES.thinking_tokens), p=chances)
    at_once = act(NODES, PAIR.ratio, np.full(len(actions), ESCALATE), LARGE).outcome
    # Asking the large model pays best at the first checkpoint, but not before it.
    tokens = NODES.thinking_tokens + NODES.exit_answer_tokens
    exits = NODES.exit_exact_match - price * PAIR.ratio * tokens
    best = np.maximum(np.maximum.reduceat(exits, NODES.offsets[:-1]), utility(at_once, price))
    assert (utility(act(NODES, PAIR.ratio, actions, LARGE).outcome, price) <= best + 1e-12).all()


def known_optimum() -> Pair:
    """Kind 0 is right at once, kind 2 at the natural end only, kind 3 from the third checkpoint
    on but not there, kind 1 never, but the large model is, and only on this kind."""  # fmt: skip
    small = tabular_table(16)
    kind = small.signals["kind"][small.offsets[:-1]]
    step = np.arange(len(small.thinking_tokens)) % 4
    row_kind = small.signals["kind"]
    exits = np.where((row_kind == 0) | ((row_kind == 3) & (step >= 2)), 1.0, 0.0)
    final = np.where(np.isin(kind, (0, 2)), 1.0, 0.0)
    seen = {f"kind_{k}": np.where(row_kind == k, 1.0, 0.0) for k in range(4)}
    small = replace(small, exit_exact_match=exits, final_exact_match=final, signals=seen)
    large = replace(
        small,
        exit_exact_match=np.zeros(len(exits)),
        final_exact_match=np.where(kind == 1, 1.0, 0.0),
    )
    return pair_tables(small, large, ratio=0.5)


def test_ppo_finds_the_known_optimum() -> None:
    pair = known_optimum()
    other = replace(pair.small, question_ids=np.char.add("v", pair.small.question_ids))
    validation = Pair(other, pair.large, pair.ratio, pair.tasks)
    config = PPOConfig(
        total_timesteps=20_000, n_envs=64, batch_size=512, n_epochs=4, evaluate_every=8
    )
    trained = train_cascade(pair, validation, config)
    assert trained.score.mean_oracle_gap_closed > 0.99
    kind = np.arange(len(pair)) // 16
    price = 0.1 / float(pair.large.full_tokens.mean())
    done = replay_cascade(trained.cascade, pair, price, served(None, pair.large, price).outcome)
    np.testing.assert_array_equal(done.escalated, kind == 1)
    np.testing.assert_array_equal(done.ends, np.array([0, 0, 4, 2])[kind])


def test_the_same_seed_gives_the_same_cascade_and_another_does_not() -> None:
    validation = replace(PAIR, small=replace(PAIR.small, question_ids=PAIR.small.trace_ids))
    tiny = PPOConfig(total_timesteps=512, n_envs=32, batch_size=128)
    first, same, other = (
        train_cascade(PAIR, validation, replace(tiny, seed=seed), large=LARGE_POLICY).cascade
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_saving_and_loading_is_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "cascade.safetensors"
    save_cascade(path, CASCADE)
    loaded = load_cascade(path)
    assert loaded == CASCADE
    assert loaded != random_cascade(1)
    assert hash(loaded) == hash(CASCADE)
    assert (loaded.ratio, loaded.features) == (0.25, CASCADE.features)
    seen = observe(NODES, CASCADE.features)
    np.testing.assert_array_equal(loaded.chances(seen, PRICE), CASCADE.chances(seen, PRICE))


def test_what_is_no_cascade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no cascade"):
        load_cascade(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("{}")
    write_run(tmp_path / "run")
    for other in (tmp_path / "text", tmp_path / "run" / "best.safetensors"):
        with pytest.raises(UserError, match="is not a cascade"):
            load_cascade(other)
    tensors = dict(CASCADE.tensors)
    wrong: list[dict[str, Any]] = [
        {"features": CASCADE.features[:-1], "ratio": 0.5},
        {"features": CASCADE.features, "ratio": 1.5},
    ]
    for parts in wrong:
        with pytest.raises(UserError, match="are no cascade"):
            make_cascade(tensors, **parts, price_range=PRICES, clip=5.0)


def test_a_request_is_told_what_it_lacks() -> None:
    with pytest.raises(UserError, match="serves prices"):
        CascadeRequest(CASCADE, token_price=1.0, question="?")
    with pytest.raises(UserError, match="looks at the question"):
        CascadeRequest(CASCADE, token_price=PRICE)
    with pytest.raises(ValueError, match="shape"):
        CASCADE(np.zeros(3, dtype=np.float32), token_price=PRICE)


def test_pairs_that_cannot_be_trained_on_are_refused() -> None:
    half = replace(PAIR, ratio=0.5)
    renamed = replace(half, small=replace(half.small, question_ids=PAIR.small.trace_ids))
    for validation, config, said in (
        (PAIR, PPOConfig(), "split by question"),
        (renamed, PPOConfig(), "one ratio"),
        (replace(renamed, ratio=0.25), PPOConfig(preset="probe"), "free preset"),
        (PAIR.take([]), PPOConfig(), "record more"),
    ):
        with pytest.raises(UserError, match=said):
            train_cascade(PAIR, validation, config)


def test_the_observation_is_the_free_one_the_question_and_the_end() -> None:
    free = feature_names(PAIR.small.signals, "free")
    assert cascade_features(PAIR.small) == (*free, *CONTEXT_SIGNALS, "natural_end")
    bare = {k: v for k, v in PAIR.small.signals.items() if k not in CONTEXT_SIGNALS}
    table = replace(PAIR.small, signals=bare)
    assert cascade_features(table) == (*free, "natural_end")
    assert cascade_features(with_natural_end(table)) == (*free, "natural_end")
