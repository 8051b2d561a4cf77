"""How long one decision takes: the frozen policy, a whole plan over it, and SB3's ``predict``.

    python -m runs.speed.decision_speed [POLICY_FOLDER]

Writes ``runs/results/decision_speed.json``. Without a folder the network has the size of a single
policy (34 features and the price, 64 and 64 hidden units) and random weights; the time does not
depend on them. That of a cross-fitted ensemble has one layer, on up to some 350 questions of 165
units: ten members of 16, and five steps of doubt; on more than some 700 members are of 64. The plan
is the single policy under a guard of the usual size and a hundred rules that compare a signal at
every checkpoint and never hold, so that rules, policy and guard are asked; ``predict`` runs the
same network. All are asked one observation at a time, in turns of many calls within one process, on
one thread. ``predict`` gets its observation normalised already, the frozen policy does that itself,
checks the numbers and gives the probability beside the action.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.policy.folder import Policy, load_policy, make_policy
from rlbudget.policy.observation import feature_names
from rlbudget.signals.tokens import SIGNALS
from rlbudget.strategies.compose import Served, Strategy, compose
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.impact import HIDDEN, ImpactModel
from runs.common import write_result

ROUNDS = 25
FROZEN_CALLS, PREDICT_CALLS = 4000, 200
SEED = 0
MICROSECONDS, PLAN_MICROSECONDS, TIMES_FASTER = 10.0, 25.0, 10.0
ENSEMBLE_MICROSECONDS, NARROW, WIDE = 15.0, 165, 645
RULES = 100


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    policy = load_policy(sys.argv[1]) if len(sys.argv) > 1 else random_policy()
    actor = sb3_actor(policy)
    rng = np.random.default_rng(SEED)
    low, high = policy.price_range
    price = float(np.sqrt(low * high))
    drawn = policy.tensors["obs_mean"] + policy.tensors["obs_std"] * rng.normal(
        size=(1000, len(policy.features))
    )
    thinking = policy.features.index("thinking_tokens")
    drawn[:, thinking] = np.abs(drawn[:, thinking])
    observations = drawn.astype(np.float32)
    normaliser = Normaliser(
        policy.tensors["obs_mean"],
        policy.tensors["obs_std"],
        policy.price_range,
        policy.config["clip"],
    )
    inputs = normaliser.inputs(observations, price)
    check_same_actions(policy, actor, observations, inputs, price)

    served = whole_plan(policy)
    for row in observations:
        if served(row, token_price=price) != policy(row, token_price=price):
            raise SystemExit("the plan decided without its policy: its time says nothing")
    ensembles = {units: random_policy((units,)) for units in (NARROW, WIDE)}
    together: dict[int, list[float]] = {units: [] for units in ensembles}
    frozen, whole, predict = [], [], []
    for _ in range(ROUNDS):
        frozen.append(
            median_microseconds(lambda o: policy(o, token_price=price), observations, FROZEN_CALLS)
        )
        for units, ensemble in ensembles.items():

            def decide(o: Any, ensemble: Policy = ensemble) -> Any:
                return ensemble(o, token_price=price)

            together[units].append(median_microseconds(decide, observations, FROZEN_CALLS))
        whole.append(
            median_microseconds(lambda o: served(o, token_price=price), observations, FROZEN_CALLS)
        )
        predict.append(
            median_microseconds(
                lambda x: actor.predict(x, deterministic=True), inputs, PREDICT_CALLS
            )
        )
    one, plan, sb3 = map(statistics.median, (frozen, whole, predict))
    ratio = statistics.median(p / f for p, f in zip(predict, frozen, strict=True))
    write_result(
        "decision_speed",
        [
            {
                "row": "one decision by the frozen policy, median microseconds",
                "wanted": f"<= {MICROSECONDS:g}",
                "reached": round(one, 2),
                "met": one <= MICROSECONDS,
            },
            *(
                {
                    "row": f"one decision of the cross-fitted policy of {units} units, median"
                    " microseconds",
                    "wanted": f"<= {ENSEMBLE_MICROSECONDS:g}",
                    "reached": round(statistics.median(times), 2),
                    "met": statistics.median(times) <= ENSEMBLE_MICROSECONDS,
                }
                for units, times in together.items()
            ),
            {
                "row": "one decision of policy, guard and 100 rules, median microseconds",
                "wanted": f"<= {PLAN_MICROSECONDS:g}",
                "reached": round(plan, 2),
                "met": plan <= PLAN_MICROSECONDS,
            },
            {
                "row": "times faster than SB3's predict on the same network, same run",
                "wanted": f">= {TIMES_FASTER:g}",
                "reached": round(ratio, 1),
                "met": ratio >= TIMES_FASTER,
            },
        ],
        seed=SEED,
        details={
            "layers": policy.config["layers"],
            "load_average_at_the_end": round(os.getloadavg()[0], 2),
            "rounds": ROUNDS,
            "calls_a_round": {"frozen": FROZEN_CALLS, "predict": PREDICT_CALLS},
            "frozen_microseconds": [round(t, 2) for t in frozen],
            "ensemble_microseconds": {
                units: [round(t, 2) for t in times] for units, times in together.items()
            },
            "plan_microseconds": [round(t, 2) for t in whole],
            "predict_microseconds": [round(t, 2) for t in predict],
            "predict_median_microseconds": round(sb3, 2),
            "batch_of_1000_microseconds_a_row": round(batch_microseconds(policy, observations), 3),
        },
    )


def random_policy(hidden: tuple[int, ...] = (64, 64)) -> Policy:
    """Random weights."""
    features = feature_names(SIGNALS, "free")
    rng = np.random.default_rng(SEED)
    sizes = [len(features) + 1, *hidden, 2]
    names = [*(f"mlp_extractor.policy_net.{2 * i}" for i in range(len(hidden))), "action_net"]
    tensors = {
        "obs_mean": rng.normal(size=len(features)).astype(np.float32),
        "obs_std": np.exp(rng.normal(size=len(features))).astype(np.float32),
    }
    for name, inputs, outputs in zip(names, sizes[:-1], sizes[1:], strict=True):
        weight = rng.normal(scale=inputs**-0.5, size=(outputs, inputs))
        tensors[f"{name}.weight"] = weight.astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(outputs, dtype=np.float32)
    return make_policy(tensors, features=features, preset="free", price_range=(1e-5, 1e-2))


def whole_plan(policy: Policy) -> Served:
    """The policy under a guard and a hundred rules that are asked and never hold."""
    rng = np.random.default_rng(SEED)
    sizes = [len(policy.features), *HIDDEN, 1]
    guard = ImpactModel(
        policy.features,
        policy.tensors["obs_mean"].astype(np.float64),
        policy.tensors["obs_std"].astype(np.float64),
        tuple(rng.normal(0, n**-0.5, (n, m)) for n, m in pairwise(sizes)),
        tuple(np.zeros(m) for m in sizes[1:]),
    )
    signals = sorted(set(policy.features) & set(SIGNALS))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rules.toml"
        file.write_text(
            "".join(
                f"[[rule]]\nname = '{i}'\nthen = 'go on'\n"
                f"signal = {{ {signals[i % len(signals)]} = '> 1e{i + 20}' }}\n"
                for i in range(RULES)
            )
        )
        strategy = Strategy(guard=guard, max_risk=1.0, rules=file)
        return compose({"policy": policy}, strategy).serve(RequestFacts("2 + 2?"))


def sb3_actor(policy: Policy) -> ActorCriticPolicy:
    """SB3's policy with the frozen one's weights."""
    sizes = policy.config["layers"]
    actor = ActorCriticPolicy(
        gym.spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32),
        gym.spaces.Discrete(2),
        lambda _: 0.0,
        net_arch={"pi": sizes[1:-1], "vf": sizes[1:-1]},
        activation_fn=torch.nn.Tanh,
    )
    weights = {
        name: torch.from_numpy(tensor.copy())
        for name, tensor in policy.tensors.items()
        if not name.startswith("obs_")
    }
    missing = actor.load_state_dict(weights, strict=False)
    if missing.unexpected_keys:
        raise SystemExit(f"SB3's policy has no {missing.unexpected_keys}")
    return actor


def check_same_actions(
    policy: Policy, actor: ActorCriticPolicy, observations: Any, inputs: Any, price: float
) -> None:
    stops = np.array([policy(o, token_price=price).stop for o in observations])
    actions, _ = actor.predict(inputs, deterministic=True)
    if (stops != (actions == 1)).any():
        raise SystemExit("the two networks disagree; their times cannot be compared")


def median_microseconds(call: Callable[[Any], Any], rows: Any, n: int) -> float:
    """Each call by itself, the clock's own time (about 0.1) included."""
    inputs = [rows[i % len(rows)].copy() for i in range(n)]
    times = []
    for value in inputs:
        start = time.perf_counter_ns()
        call(value)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def batch_microseconds(policy: Policy, observations: Any) -> float:
    times = []
    for _ in range(50):
        start = time.perf_counter_ns()
        policy.stop_probabilities(observations, policy.price_range[0])
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000 / len(observations)


if __name__ == "__main__":
    main()
