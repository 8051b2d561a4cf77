"""Frozen policies: the trained network's numbers, refusals, folders, alone with numpy."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
import torch
from frozen_nets import (
    FREE,
    PRICES,
    random_observations,
    random_policy,
    random_prices,
    random_tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy

from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy, load_policy, make_policy, network, save_policy

POLICY = random_policy()
FILES = ("config.json", "policy.safetensors", "policy.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "policy", POLICY, standalone=True)
    return tmp_path / "policy"


def sb3_policy(n_features: int) -> ActorCriticPolicy:
    torch.manual_seed(0)
    box = gym.spaces.Box(-np.inf, np.inf, (n_features + 1,), np.float32)
    actor = ActorCriticPolicy(
        box,
        gym.spaces.Discrete(2),
        lambda _: 3e-4,
        net_arch={"pi": [64, 64], "vf": [64, 64]},
        activation_fn=torch.nn.Tanh,
    )
    with torch.no_grad():  # SB3 starts the last layer near 0, where every policy says one half
        actor.action_net.get_parameter("weight").mul_(100)
    return actor


def test_frozen_and_sb3_agree_to_1e_5_on_10000_observations() -> None:
    actor = sb3_policy(len(FREE))
    rest = random_tensors(len(FREE))
    normaliser = Normaliser(rest["obs_mean"], rest["obs_std"], PRICES)
    weights = {
        name: value.numpy()
        for name, value in actor.state_dict().items()
        if "policy_net" in name or "action_net" in name
    }
    policy = make_policy(
        {**weights, "obs_mean": normaliser.mean, "obs_std": normaliser.std},
        features=FREE,
        preset="free",
        price_range=PRICES,
        clip=normaliser.clip,
    )
    observations, prices = random_observations(policy, 10_000), random_prices(10_000)
    inputs = torch.from_numpy(normaliser.inputs(observations, prices))
    with torch.no_grad():
        trained = actor.get_distribution(inputs).distribution.probs[:, 1].numpy()  # type: ignore[union-attr]
    frozen_ = policy.stop_probabilities(observations, prices)
    assert np.std(trained) > 0.1
    assert np.abs(frozen_ - trained).max() <= 1e-5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), hidden=st.lists(st.integers(1, 40), max_size=3))
def test_a_batch_is_its_rows_one_by_one_bit_for_bit(seed: int, hidden: list[int]) -> None:
    policy = make_policy(
        random_tensors(7, seed, hidden),
        features=[f"f{i}" for i in range(7)],
        preset="free",
        price_range=PRICES,
    )
    observations, prices = random_observations(policy, 50, seed), random_prices(50, seed)
    batch = policy.stop_probabilities(observations, prices)
    single = [policy(o, token_price=p) for o, p in zip(observations, prices, strict=True)]
    assert batch.tolist() == [decision.stop_probability for decision in single]
    assert (batch > policy.threshold).tolist() == [decision.stop for decision in single]
    assert policy.stop_probabilities(observations, PRICES[0]).tolist() == [
        policy(o, token_price=PRICES[0]).stop_probability for o in observations
    ]


def test_a_long_batch_is_the_same_as_its_parts() -> None:
    observations = random_observations(POLICY, 20_000)
    whole = POLICY.stop_probabilities(observations, 1e-3)
    assert (whole[9_000:9_010] == POLICY.stop_probabilities(observations[9_000:9_010], 1e-3)).all()
    assert POLICY.stop_probabilities(observations[:0], 1e-3).shape == (0,)


def test_it_stops_only_above_the_threshold() -> None:
    observation = random_observations(POLICY, 1)[0]
    p = POLICY(observation, token_price=1e-3).stop_probability
    for threshold, stop in ((p, False), (np.nextafter(p, 0), True), (1.0, False)):
        policy = random_policy(threshold=float(threshold))
        assert policy(observation, token_price=1e-3)[:2] == (stop, p)


def test_threads_do_not_disturb_each_other() -> None:
    observations = random_observations(POLICY, 4_000)
    expected = POLICY.stop_probabilities(observations, 1e-3).tolist()

    def one_by_one(_: int) -> list[float]:
        return [POLICY(o, token_price=1e-3).stop_probability for o in observations]

    with ThreadPoolExecutor(8) as pool:
        assert all(got == expected for got in pool.map(one_by_one, range(8)))


def test_lists_and_wider_floats_are_taken_as_float32() -> None:
    observation = random_observations(POLICY, 1)[0]
    expected = POLICY(observation, token_price=1e-3)
    assert POLICY(observation.tolist(), token_price=1e-3) == expected
    assert POLICY(observation.astype(np.float64), token_price=np.float64(1e-3)) == expected
    strided = np.repeat(observation, 3)[::3]
    assert POLICY(strided, token_price=1e-3) == expected


def test_prices_at_the_ends_are_served_although_computed_with_rounding() -> None:
    observation = random_observations(POLICY, 1)[0]
    for price in (*PRICES, PRICES[0] * (1 - 1e-12), PRICES[1] * (1 + 1e-12)):
        assert 0 <= POLICY(observation, token_price=price).stop_probability <= 1


def test_a_single_price_is_a_range_too() -> None:
    policy = random_policy(price_range=(1e-3, 1e-3))
    assert 0 <= policy(random_observations(policy, 1)[0], token_price=1e-3).stop_probability <= 1


N = len(FREE)
GOOD = random_observations(POLICY, 1)[0]


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (GOOD[:-1], f"shape ({N - 1},), but this policy was trained on {N} features"),
        (GOOD[None], f"shape (1, {N})"),
        (np.float32(1), "shape ()"),
        (GOOD.astype(np.int64), "int64 instead of float32"),
        (GOOD.astype(np.complex64), "complex64 instead of float32"),
        (GOOD.astype(object), "object instead of float32"),
        ("entropy", "shape ()"),
        ([[1.0], [1.0, 2.0]], "rows of different lengths"),
        (np.full(N, 1e300), "thinking_tokens.log is inf, not finite"),
    ],
)
def test_it_refuses_an_observation_it_was_not_trained_on(observation: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        POLICY(observation, token_price=1e-3)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(value: float) -> None:
    for k, name in enumerate(FREE):
        observation = GOOD.copy()
        observation[k] = value
        with pytest.raises(ValueError, match=f"{name} is {value}, not finite"):
            POLICY(observation, token_price=1e-3)
        with pytest.raises(ValueError, match=f"{name} is {value} in row 1, not finite"):
            POLICY.stop_probabilities(np.stack([GOOD, observation]), 1e-3)


def test_the_largest_float32_is_finite_and_is_cut_off() -> None:
    for value in (np.finfo(np.float32).max, np.finfo(np.float32).min):
        observation = np.full(len(FREE), value, dtype=np.float32)
        assert 0 <= POLICY(observation, token_price=1e-3).stop_probability <= 1


@pytest.mark.parametrize(
    ("price", "said"),
    [
        (1.0, "1 is outside 1e-05 to 0.01"),
        (1e-6, "1e-06 is outside"),
        (0, "0 is outside"),
        (float("nan"), "nan is outside"),
        ("0.001", "'0.001' is not a number"),
        (None, "None is not a number"),
    ],
)
def test_it_refuses_a_price_it_was_not_trained_on(price: Any, said: str) -> None:
    for call in (
        lambda: POLICY(GOOD, token_price=price),
        lambda: POLICY.stop_probabilities(GOOD[None], price),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert said in str(caught.value)


def test_a_batch_refuses_another_number_of_prices() -> None:
    with pytest.raises(ValueError, match=r"token_price: shape \(3,\)"):
        POLICY.stop_probabilities(np.stack([GOOD, GOOD]), np.full(3, 1e-3))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
features = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    min_size=1,
    max_size=9,
    unique=True,
)
prices = st.tuples(st.floats(1e-9, 1.0), st.floats(1.0, 1e3)).map(lambda p: (p[0] * 0.5, p[1]))


@settings(max_examples=25, deadline=None)
@given(
    features=features,
    hidden=st.lists(st.integers(1, 9), max_size=3),
    seed=st.integers(0, 1000),
    price_range=prices,
    threshold=st.floats(0, 1),
    trained=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
def test_saving_and_loading_is_the_identity(
    features: list[str],
    hidden: list[int],
    seed: int,
    price_range: tuple[float, float],
    threshold: float,
    trained: dict[str, Any],
) -> None:
    policy = make_policy(
        random_tensors(len(features), seed, hidden),
        features=features,
        preset="probe",
        price_range=price_range,
        threshold=threshold,
        trained=trained,
    )
    with tempfile.TemporaryDirectory() as parent:
        save_policy(Path(parent) / "p", policy)
        loaded = load_policy(Path(parent) / "p")
    assert loaded == policy
    assert hash(loaded) == hash(policy)
    assert loaded.config == policy.config
    assert (loaded.features, loaded.preset) == (tuple(features), "probe")
    assert (loaded.price_range, loaded.threshold) == (price_range, threshold)
    observations = random_observations(policy, 5)
    assert (
        loaded.stop_probabilities(observations, price_range[0]).tolist()
        == policy.stop_probabilities(observations, price_range[0]).tolist()
    )


def test_a_policy_goes_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(POLICY))  # noqa: S301 - our own bytes
    assert again == POLICY
    assert again != random_policy(seed=1)
    assert again(GOOD, token_price=1e-3) == POLICY(GOOD, token_price=1e-3)


def one_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_policy(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_clear_line(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing; freeze the run again" in one_line(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["flip", "cut", "grow", "empty"])
def test_an_altered_file_is_one_clear_line(folder: Path, name: str, change: str) -> None:
    data = bytearray((folder / name).read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
    changed = {"cut": data[: len(data) // 2], "grow": data + b"1", "empty": b""}.get(change, data)
    (folder / name).write_bytes(bytes(changed))
    message = one_line(folder)
    assert name in message
    assert "freeze the run again" in message


def test_an_edited_config_is_noticed_although_it_is_valid(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["threshold"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json was altered after freezing" in one_line(folder)


def test_a_reformatted_config_is_the_same_policy(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, sort_keys=True))
    assert load_policy(folder) == POLICY


def test_the_card_may_be_rewritten(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    assert load_policy(folder) == POLICY


def test_folders_that_are_no_policy_say_so(tmp_path: Path) -> None:
    assert "no such folder" in one_line(tmp_path / "nowhere")
    assert "config.json is missing" in one_line(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "config.json is not that of a policy" in one_line(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "rlbudget-policy", "version": 2}')
    assert "format version 2" in one_line(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json is not JSON" in one_line(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "cannot read config.json" in one_line(tmp_path)


def reseal(folder: Path, **changes: Any) -> None:
    """Change a config and make its digest right: what another version could have written."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config["digests"]["config.json"] = network.config_digest(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": []}, "expected array of length >= 1 at .features"),
        ({"features": list(FREE[:-1])}, "the normaliser needs a mean and a positive std"),
        ({"price_range": [1, 0.5]}, "price_range must be"),
        ({"price_range": [0, 1]}, "expected float > 0.0 at .price_range[0]"),
        ({"threshold": 1.5}, "expected float <= 1.0 at .threshold"),
        ({"threshold": None}, "expected float, got null at .threshold"),
        ({"activation": "relu"}, "invalid enum value 'relu' at .activation"),
        ({"clip": 0}, "expected float > 0.0 at .clip"),
        ({"layers": [N + 1, 64, 2]}, "layers"),
        ({"observation_version": 99}, "observations of version 99"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    reseal(folder, **changes)
    assert said in one_line(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"obs_std": np.zeros(N, np.float32)}, "positive std"),
        ({"obs_mean": np.full(N, np.nan, np.float32)}, "obs_mean holds a number that is not"),
        ({"value_net.bias": np.zeros(1, np.float32)}, "missing or unknown: value_net.bias"),
        ({"action_net.bias": None}, "missing or unknown: action_net.bias"),
        ({"action_net.weight": np.zeros((2, 63), np.float32)}, "does not fit 64 inputs"),
        ({"action_net.bias": np.zeros(3, np.float32)}, "does not fit 64 inputs"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    tensors = {k: v for k, v in (random_tensors(N) | change).items() if v is not None}
    with pytest.raises(UserError, match=said):
        make_policy(tensors, features=FREE, preset="free", price_range=PRICES)


def test_a_network_of_three_actions_is_no_policy() -> None:
    with pytest.raises(UserError, match="two logits, CONTINUE and STOP, and this has 3"):
        make_policy(
            random_tensors(len(FREE), actions=3), features=FREE, preset="free", price_range=PRICES
        )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_weights_file_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float32)}
    content = bytearray(safetensors.numpy.save(tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    refused, read = None, {}
    try:
        read = network.read_tensors(bytes(content))
    except ValueError as error:
        refused = str(error)
    assert all(tensor.dtype == np.float32 for tensor in read.values())
    if refused is not None:
        assert "\n" not in refused
        assert refused.startswith("policy.safetensors: not a safetensors file")


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.lists(st.integers(0, 4), max_size=3),
        max_size=5,
    )
)
def test_weights_files_are_read_as_safetensors_reads_them(shapes: dict[str, list[int]]) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    read = network.read_tensors(safetensors.numpy.save(tensors, metadata={"made": "here"}))
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


def test_other_dtypes_are_refused() -> None:
    content = safetensors.numpy.save({"a": np.zeros(2, np.float64)})
    with pytest.raises(ValueError, match="a is F64"):
        network.read_tensors(content)


ALONE = """
import json, sys
sys.path[:0] = {path!r}
before = set(sys.modules)
import numpy as np
from policy import decide, stop_probabilities
observations = np.load({observations!r})
price = {price!r}
single = [decide(o, token_price=price) for o in observations]
try:
    decide(observations[0] * np.float32("nan"), price)
except ValueError as error:
    refused = str(error)
outside = sorted(
    name for name, module in sys.modules.items()
    if name not in before and "site-packages" in (getattr(module, "__file__", None) or "")
    and name.split(".")[0] != "numpy"
)
print(json.dumps([single, stop_probabilities(observations, price).tolist(), refused, outside]))
"""


def check_alone(
    folder: Path, tmp_path: Path, python: list[str], path: list[str], policy: Policy
) -> None:
    observations = random_observations(policy, 20)
    np.save(tmp_path / "observations.npy", observations)
    code = ALONE.format(path=path, observations=str(tmp_path / "observations.npy"), price=1e-3)
    ran = subprocess.run(
        [*python, "-c", code], capture_output=True, text=True, cwd=folder, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    single, batch, refused, outside = json.loads(ran.stdout)
    expected = [list(policy(o, token_price=1e-3)) for o in observations]
    assert single == expected
    assert batch == [p for _, p in expected]
    assert "is nan, not finite" in refused
    assert outside == []


def test_policy_py_serves_its_folder_where_only_numpy_can_be_imported(
    folder: Path, tmp_path: Path
) -> None:
    """An isolated interpreter without site-packages, numpy alone linked beside it."""
    only = tmp_path / "only_numpy"
    only.mkdir()
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (only / name).symlink_to(site / name)
    isolated = [sys.executable, "-I", "-S"]
    without = subprocess.run([*isolated, "-c", "import rlbudget"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in without.stderr
    check_alone(folder, tmp_path, isolated, [str(folder), str(only)], POLICY)


def test_a_moved_folder_still_serves(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    ran = subprocess.run(
        [sys.executable, "-c", "import policy; print(policy.here().features[0])"],
        capture_output=True,
        text=True,
        cwd=moved,
    )
    assert ran.stdout == f"{FREE[0]}\n"
    (moved / "policy.safetensors").unlink()
    ran = subprocess.run(
        [sys.executable, "-c", "import policy; policy.decide([1.0], 1e-3)"],
        capture_output=True,
        text=True,
        cwd=moved,
    )
    assert "policy.safetensors is missing" in ran.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_policy_py_works_in_a_fresh_venv_that_has_only_numpy(folder: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", f"numpy=={np.__version__}"]
    subprocess.run(install, check=True)
    check_alone(folder, tmp_path, [python], [str(folder)], POLICY)
