"""The vLLM adapter: the same decodes as ``Request``, and no request that can hurt the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_vllm
import numpy as np
import pytest
import torch
from fake_vllm import ModelConfig, Params
from frozen_nets import random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer

from rlbudget.decoding.core import VLLM, Core, bind
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.integrations.vllm_settings import settings_of, wish_of
from rlbudget.models.logits_row import RowReader
from rlbudget.models.sampling import token_signals
from rlbudget.policy.folder import Policy, save_policy

SIZE = 320
PROMPT = [1, 3]
EOS, END = 2, 4
vllm = fake_vllm.adapter()


def policy_of(profile: str = "embedded", seed: int = 0, **rest: Any) -> Policy:
    recorded = {"profile": profile, "stride": 4, "max_tokens": 40}
    return random_policy(seed=seed, trained={"traces": {"recorded": recorded}}, **rest)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(SIZE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def policy_folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "policy", policy_of())
    return tmp_path / "policy"


@pytest.fixture
def model(tokenizer_folder: str) -> ModelConfig:
    return ModelConfig(tokenizer_folder, SIZE)


def plan_of(seed: int = 0, profile: str = "embedded") -> Core:
    return bind(
        policy_of(profile, seed), tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE, eos_ids=[EOS]
    )


def decode_of(plan: Core, max_tokens: int | None, context: int) -> Any:
    reader = RowReader(SIZE, plan.vocabulary.end_first_ids)
    return vllm.Decode(plan, reader, vllm.Wish("default", None), max_tokens, context)


def rows(n: int, seed: int, *, fond_of: int | None = None, at: int = 0) -> torch.Tensor:
    """(n, SIZE) random logits; the end tokens are rarely the first choice."""
    logits = np.random.default_rng(seed).normal(0, 3, (n, SIZE)).astype(np.float32)
    if fond_of is not None and at < n:
        logits[at, fond_of] = 40
    return torch.from_numpy(logits)


def by_request(request: Request, plan: Core, logits: torch.Tensor) -> list[int]:
    """The greedy decode of these logits by the core alone."""
    tokens = []
    for row in logits:
        likeliest = int(row.argmax())
        token = request.forced(likeliest)
        if token is None:
            allowed = row.clone()
            if request.thinking:
                allowed[plan.vocabulary.eos_ids] = -torch.inf
            token = int(allowed.argmax())
        ends = torch.from_numpy(plan.vocabulary.end_first_ids)
        request.push(token, token_signals(row[None], torch.tensor([token]), ends)[0])
        tokens.append(token)
    return tokens


def by_decode(
    decode: Any, logits: torch.Tensor, repeats: frozenset[int] = frozenset()
) -> list[int]:
    """The greedy decode through V1's callable; rows in ``repeats`` are shown twice."""
    tokens: list[int] = []
    for step, row in enumerate(logits):
        if step in repeats:
            other = rows(1, seed=step, fond_of=EOS)[0]
            decode(PROMPT, tokens, other)
        seen = row.clone()
        assert decode(PROMPT, tokens, seen) is seen
        tokens.append(int(seen.argmax()))
    return tokens


@given(
    size=st.sampled_from([64, 100, 320, 1500, 4096]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 8.0, 40.0]),
    ruled_out=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_row_gives_the_signals_of_the_recorder(
    size: int, seed: int, scale: float, ruled_out: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, scale, size).astype(np.float32))
    if ruled_out:
        logits[torch.from_numpy(rng.choice(size, size // 4, replace=False))] = -torch.inf
    token, ends = int(logits.argmax()), torch.tensor([4, 9])
    reader = RowReader(size, ends.numpy())
    row = reader.read(logits, reader.memory())
    assert row.likeliest == token
    expected = token_signals(logits[None], torch.tensor([token]), ends)[0]
    np.testing.assert_allclose(row.signals(token), expected, rtol=1e-4, atol=1e-4)


@given(
    seed=st.integers(0, 10**6),
    fond_of=st.sampled_from([None, EOS, END]),
    at=st.integers(0, 60),
    profile=st.sampled_from(["embedded", "think", "plain"]),
    repeats=st.frozensets(st.integers(0, 60), max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_v1_decodes_as_the_request_does(
    seed: int, fond_of: int | None, at: int, profile: str, repeats: frozenset[int]
) -> None:
    plan, logits = plan_of(seed % 7, profile), rows(60, seed, fond_of=fond_of, at=at)
    request = Request(plan, max_new_tokens=1000)
    decode = decode_of(plan, 1000, 2000)
    assert by_decode(decode, logits, repeats) == by_request(request, plan, logits)
    assert not request.thinking
    assert plan.failures.count == 0


def test_the_two_ways_differ_where_the_row_is_never_shown() -> None:
    """The laws above hold because exits happen, not because nothing does."""
    outcomes = set()
    for seed in range(12):
        plan = plan_of(seed % 7)
        request = Request(plan, max_new_tokens=1000)
        by_request(request, plan, rows(60, seed, fond_of=(None, EOS, END)[seed % 3], at=seed))
        outcomes.add(request.ending.reason)
    assert outcomes >= {"policy", "natural"}


def test_an_answer_finds_room_in_max_tokens_and_in_the_context() -> None:
    never = random_policy(
        threshold=1.0,
        trained={"traces": {"recorded": {"profile": "embedded", "stride": 4, "max_tokens": 400}}},
    )
    plan = bind(never, tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE, eos_ids=[EOS])
    for max_tokens, context in ((50, 1000), (None, 52), (900, 52)):
        decode = decode_of(plan, max_tokens, context)
        tokens = by_decode(decode, rows(50, 0))
        assert tokens.index(END) == 50 - plan.reserve


def test_a_request_without_room_is_left_alone_and_counted() -> None:
    plan, logits = plan_of(), rows(30, 1)
    decode = decode_of(plan, None, 10)
    assert by_decode(decode, logits) == logits.argmax(dim=1).tolist()
    assert plan.failures.count == 1


def test_a_policy_that_breaks_down_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        features = policy_of().features
        price_range = policy_of().price_range

        def __call__(self, observation: Any, *, token_price: float) -> Any:
            raise RuntimeError("out of order")

    plan = bind(
        Broken(),
        tiny_tokenizer(SIZE),
        VLLM,
        vocabulary_size=SIZE,
        eos_ids=[EOS],
        profile="embedded",
    )
    for seed in range(3):
        decode = decode_of(plan, None, 1000)
        logits = rows(40, seed, fond_of=END, at=30)
        logits[:30, [EOS, END]] = -20
        assert by_decode(decode, logits)[30] == END
    assert plan.failures.count == 3
    assert len([r for r in caplog.records if "out of order" in r.getMessage()]) == 1


def test_a_request_whose_tokens_were_missed_is_left_alone() -> None:
    plan, logits = plan_of(), rows(2, 0)
    decode = decode_of(plan, None, 1000)
    first, second = logits.clone()
    decode(PROMPT, [], first)
    decode(PROMPT, [7, 8, 9], second)
    assert torch.equal(second, logits[1])
    assert plan.failures.count == 1


@pytest.fixture
def processor(model: ModelConfig, policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RLBUDGET_POLICY", f"main={policy_folder},other={policy_folder}")
    return vllm.BudgetProcessor(fake_vllm.config(model, seqs=2), torch.device("cpu"), False)


def test_v1_makes_one_decode_a_request_and_knows_it_again(processor: Any) -> None:
    assert processor.made_by_v1
    assert not processor.is_argmax_invariant()
    requests = [Params(200) for _ in range(6)]
    decodes = [processor.new_req_logits_processor(params) for params in requests]
    assert len(set(map(id, decodes))) == 6
    assert processor.new_req_logits_processor(requests[5]) is decodes[5]
    assert processor.new_req_logits_processor(requests[0]) is not decodes[0]  # long ago
    assert processor.new_req_logits_processor(Params(200, {"rlbudget_off": True})) is None


@pytest.mark.parametrize(
    ("max_tokens", "extra", "said"),
    [
        (200, {"rlbudget_token_price": 7.0}, "serves prices from 1e-05 to 0.01"),
        (200, {"rlbudget_token_price": float("nan")}, "serves prices"),
        (200, {"rlbudget_token_price": "low"}, "must be a number, not 'low'"),
        (200, {"rlbudget_token_price": True}, "must be a number, not True"),
        (200, {"rlbudget_policy": "/etc"}, "no policy '/etc' here; there are: main, other"),
        (200, {"rlbudget_policy": 3}, "no policy 3 here"),
        (200, {"rlbudget_off": "yes"}, "true or false, not 'yes'"),
        (200, {"rlbudget_of": True}, "no argument 'rlbudget_of'"),
        (20, None, "max_tokens 20 leaves no room to think"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    processor: Any, max_tokens: int, extra: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        processor.validate_params(Params(max_tokens, extra))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        Params(),
        Params(200),
        Params(200, {"another": 1}),
        Params(200, {"rlbudget_token_price": 1e-3, "rlbudget_policy": "other"}),
        Params(200, {"rlbudget_off": 1}),
        Params(3, {"rlbudget_off": True}),
    ],
)
def test_a_right_request_is_taken(processor: Any, params: Params) -> None:
    processor.validate_params(params)


def test_what_passes_the_check_leaves_room_in_any_tokenizer(policy_folder: Path) -> None:
    for profile in ("embedded", "think", "plain"):
        plan = plan_of(profile=profile)
        known = settings_of({"RLBUDGET_POLICY": str(policy_folder), "RLBUDGET_PROFILE": profile})
        least = next(n for n in range(1, 2000) if _taken(Params(n), known))
        Request(plan, max_new_tokens=least)


def _taken(params: Params, known: Any) -> bool:
    try:
        return wish_of(params, known) is not None
    except UserError:
        return False


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "set RLBUDGET_POLICY to a policy folder"),
        ({"RLBUDGET_POLICY": "/nowhere/p"}, "no such policy folder"),
        ({"RLBUDGET_POLICY": "a=FOLDER,a=FOLDER"}, "a name of its own"),
        ({"RLBUDGET_POLICY": "a="}, "is not name=folder"),
        ({"RLBUDGET_POLICY": "FOLDER", "RLBUDGET_PROFILE": "none"}, "no profile 'none'"),
        ({"RLBUDGET_POLICY": "FOLDER", "RLBUDGET_TOKEN_PRICE": "5"}, "serves prices from"),
        ({"RLBUDGET_POLICY": "FOLDER", "RLBUDGET_TOKEN_PRICE": "x"}, "'x' is not a number"),
    ],
)
def test_a_wrong_start_is_named(
    environment: dict[str, str], said: str, policy_folder: Path
) -> None:
    environment = {k: v.replace("FOLDER", str(policy_folder)) for k, v in environment.items()}
    with pytest.raises(UserError, match=said):
        settings_of(environment)


def test_a_policy_without_a_profile_needs_one_named(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", random_policy())
    with pytest.raises(UserError, match="set RLBUDGET_PROFILE"):
        settings_of({"RLBUDGET_POLICY": str(tmp_path / "p")})


def test_speculative_decoding_is_refused_at_the_start(
    model: ModelConfig, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLBUDGET_POLICY", str(policy_folder))
    with pytest.raises(UserError, match="speculative"):
        vllm.BudgetProcessor(
            fake_vllm.config(model, speculative=object()), torch.device("cpu"), False
        )


def test_without_vllm_the_import_says_what_to_install() -> None:
    code = "import rlbudget.integrations.vllm"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "works inside vLLM" in done.stderr.splitlines()[-1]


def test_v2_goes_by_slots_and_leaves_the_others_alone(
    model: ModelConfig, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLBUDGET_POLICY", f"main={policy_folder},other={policy_folder}")
    states = fake_vllm.request_states(4, 1024, SIZE)
    states.prompt_len.gpu[:] = len(PROMPT)
    states.prefill_len.gpu[:] = len(PROMPT)
    both = vllm.BudgetProcessor(fake_vllm.config(model), states)
    wishes: dict[int, dict[str, Any]] = {
        3: {}, 0: {"rlbudget_policy": "other"}, 2: {"rlbudget_off": True}
    }  # fmt: skip
    taken = {slot: both.add_request(slot, Params(200, extra)) for slot, extra in wishes.items()}
    assert taken == {3: True, 0: True, 2: False}
    scripts = {slot: rows(45, seed=slot) for slot in wishes}
    tokens: dict[int, list[int]] = {slot: [] for slot in wishes}
    for step in range(45):
        both.apply_staged_writes()
        order = list(wishes) if step % 2 else list(reversed(wishes))
        logits = torch.stack([scripts[slot][step] for slot in order])
        newest = [tokens[slot][-1] if step else PROMPT[-1] for slot in order]
        at = fake_vllm.context(order, newest, len(PROMPT) + step - 1)
        assert both.apply(logits, at) is logits
        for slot, row in zip(order, logits, strict=True):
            tokens[slot].append(int(row.argmax()))
    plan = bind(policy_of(), tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE, eos_ids=[EOS])
    for slot in (0, 3):
        request = Request(plan, max_new_tokens=200)
        assert tokens[slot] == by_request(request, plan, scripts[slot])
    assert tokens[2] == scripts[2].argmax(dim=1).tolist()


def test_v2_survives_a_fault(
    model: ModelConfig, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLBUDGET_POLICY", str(policy_folder))
    both = vllm.BudgetProcessor(fake_vllm.config(model), fake_vllm.request_states(2, 1024, SIZE))
    both.add_request(0, Params(200))
    both.apply_staged_writes()
    logits = rows(1, 0)[:, :100]  # another vocabulary than the model has
    before = logits.clone()
    for _ in range(2):
        both.apply(logits, fake_vllm.context([0], [5], 0))
    assert torch.equal(logits, before)
