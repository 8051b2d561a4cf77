from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_nets import FREE, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rlbudget.decoding.core import LLAMA_CPP, Core, bind
from rlbudget.decoding.decode import Decoded, decode
from rlbudget.errors import UserError
from rlbudget.integrations.llama_cpp import BudgetProcessor
from rlbudget.integrations.llama_server import ServerError, alternatives, connect
from rlbudget.integrations.llama_server import decode as serve
from rlbudget.models import load_model
from rlbudget.models.numpy_signals import token_signals
from rlbudget.models.sampling import token_signals as torch_signals
from rlbudget.models.sequences import Sequences
from rlbudget.models.transformers_model import EMBEDDED, TransformersModel
from rlbudget.policy.dial import Dial
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import feature_names
from rlbudget.signals.tokens import TOP_K, TOP_SIGNALS
from rlbudget.tasks.load import load_task
from runs.integrations.llama_process import BINARY, free_port, llama_server

torch.set_num_threads(1)

PRICE = 1e-3
CAP = 250


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=12, seed=5).questions]


def policies(features: Sequence[str] = FREE) -> Iterator[Policy]:
    recorded = {"profile": "embedded", "stride": 8, "max_tokens": CAP}
    for seed in range(3):
        yield random_policy(features, seed=seed, trained={"traces": {"recorded": recorded}})


def plan_for(model: TransformersModel, policy: Policy) -> Core:
    return bind(
        policy,
        model.tokenizer,
        LLAMA_CPP,
        vocabulary_size=len(model.vocabulary.markers),
        eos_ids=model.vocabulary.eos_ids.tolist(),
        token_price=PRICE,
    )


@torch.inference_mode()
def run(model: TransformersModel, budget: BudgetProcessor, question: str) -> None:
    """Greedy decoding as llama-cpp-python does it: it takes the likeliest of what is allowed."""
    ids = model.prompt_ids(question)
    sequences = Sequences.begin(model.network, [ids])
    while True:
        logits = sequences.logits[0].numpy()
        before = logits.copy()
        token = int(np.argmax(budget(np.array(ids, dtype=np.intc), logits)))
        assert (logits == before).all()
        if token in model.vocabulary.eos_ids:
            return
        ids.append(token)
        sequences.feed(torch.tensor([[token]]))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.floats(0.1, 30))
def test_signals_in_numpy_are_those_of_torch(seed: int, size: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_t(3, size) * spread).astype(np.float32)
    logits[rng.random(size) < 0.1] = -np.inf
    logits[0] = 1.0
    token = int(rng.choice(np.flatnonzero(np.isfinite(logits))))
    ends = rng.integers(0, size, 2)
    ours = token_signals(logits, token, ends)
    theirs = torch_signals(
        torch.from_numpy(logits)[None], torch.tensor([token]), torch.from_numpy(ends)
    )[0].numpy()
    finite = np.isfinite(theirs)
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=2e-4, atol=2e-5)
    assert (ours[~finite] == theirs[~finite]).all() or np.isnan(theirs[~finite]).any()


def test_the_processor_stops_where_a_live_decode_stops(
    model: TransformersModel, questions: list[str]
) -> None:
    reasons = set()
    for policy in policies():
        plan = plan_for(model, policy)
        for question in questions[:5]:
            budget = BudgetProcessor(plan)
            run(model, budget, question)
            wanted = decode(
                model, question, policy, token_price=PRICE, temperature=0, max_tokens=CAP
            )
            check_same(budget, wanted)
            reasons.add(wanted.reason)
    assert reasons >= {"policy", "natural"}


def check_same(budget: BudgetProcessor, wanted: Decoded) -> None:
    found = budget.ending
    assert (found.thinking_tokens, found.reason) == (wanted.thinking_tokens, wanted.reason)
    assert budget.answer == wanted.answer
    if wanted.stop_probability is None:
        assert found.stop_probability is None
    else:
        assert found.stop_probability == pytest.approx(wanted.stop_probability, abs=1e-4)


def test_no_effort_answers_before_the_first_thought(
    model: TransformersModel, questions: list[str]
) -> None:
    policy, dial = next(policies()), Dial(effort="none")
    budget = BudgetProcessor(plan_for(model, policy), dial=dial)
    run(model, budget, questions[0])
    wanted = decode(model, questions[0], policy, dial=dial, temperature=0, max_tokens=CAP)
    check_same(budget, wanted)
    assert budget.ending.thinking_tokens == 0
    assert budget.answer


def test_a_processor_serves_one_request(model: TransformersModel) -> None:
    budget = BudgetProcessor(plan_for(model, next(policies())))
    scores = np.zeros(len(model.vocabulary.markers), dtype=np.single)
    budget([1, 2], scores)
    with pytest.raises(ValueError, match="one request"):
        budget([1, 2], scores)


def test_a_processor_leaves_room_for_the_answer(model: TransformersModel) -> None:
    with pytest.raises(UserError, match="no room to think"):
        BudgetProcessor(plan_for(model, next(policies())), max_tokens=10)


TOP = feature_names(TOP_SIGNALS, "free")


def test_a_policy_of_listed_signals_asks_for_twenty_alternatives() -> None:
    assert alternatives(random_policy(TOP), 49152, None) == TOP_K
    assert alternatives(random_policy(TOP), 49152, 50) == 50


def test_a_policy_of_all_signals_asks_for_the_whole_vocabulary() -> None:
    assert alternatives(random_policy(), 49152, None) == 49152
    assert alternatives(random_policy(), 768, 1000) == 768


def test_a_policy_that_the_server_cannot_serve_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"needs end_gap_min, .*, which 20 alternatives"):
        alternatives(random_policy(), 49152, 20)
    with pytest.raises(UserError, match="needs topk_mean, which 5 alternatives"):
        alternatives(random_policy(TOP), 49152, 5)
    with pytest.raises(UserError, match="at least 2"):
        alternatives(random_policy(TOP), 49152, 1)


def test_a_missing_server_is_one_line_without_secrets() -> None:
    url = f"http://name:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ServerError) as raised, connect(url, random_policy(TOP), EMBEDDED, key="k"):
        pass
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no tokenizer\.json"),
        connect("http://127.0.0.1:1", random_policy(TOP), tmp_path),
    ):
        pass


def test_the_processor_and_the_client_load_no_torch() -> None:
    code = (
        "import sys, rlbudget.integrations.llama_cpp, rlbudget.integrations.llama_server\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_a_gguf_file_holds_the_weights(model: TransformersModel, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from runs.models.smol_gguf import write_gguf

    write_gguf(EMBEDDED, tmp_path / "embedded.gguf")
    read = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="embedded.gguf", dtype=torch.float32, trust_remote_code=False
    )
    found, wanted = read.state_dict(), model.network.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert read.config.rope_parameters["rope_theta"] == 10000.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not BINARY.is_file():
        pytest.skip("llama-server is not built: run runs/integrations/llama_server.sh")
    pytest.importorskip("gguf")
    from runs.models.smol_gguf import write_gguf

    file = tmp_path_factory.mktemp("gguf") / "embedded.gguf"
    write_gguf(EMBEDDED, file)
    with llama_server(file, context=1024) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("features", [TOP, FREE], ids=["top", "all"])
def test_llama_server_stops_where_a_live_decode_stops(
    address: str, model: TransformersModel, questions: list[str], features: tuple[str, ...]
) -> None:
    reasons = set()
    for policy in policies(features):
        with connect(address, policy, EMBEDDED, token_price=PRICE) as server:
            for question in questions:
                found = serve(server, question)
                wanted = decode(
                    model, question, policy, token_price=PRICE, temperature=0, max_tokens=CAP
                )
                # Tokens of a piece beyond a natural end are thrown away, but paid for.
                alike = {"stop_probability": None, "answer_tokens": 0}
                assert replace(found, **alike) == replace(wanted, **alike)
                assert 0 <= found.answer_tokens - wanted.answer_tokens < server.plan.stride
                assert (found.stop_probability or 0) == pytest.approx(
                    wanted.stop_probability or 0, abs=1e-3
                )
                reasons.add(found.reason)
    assert reasons >= {"policy", "natural"}


@pytest.mark.slow
def test_the_cap_ends_the_thinking(
    address: str, model: TransformersModel, questions: list[str]
) -> None:
    policy = next(policies(TOP))
    with connect(address, policy, EMBEDDED, token_price=PRICE, max_thinking_tokens=5) as server:
        found = serve(server, questions[0])
    wanted = decode(model, questions[0], policy, token_price=PRICE, temperature=0, max_tokens=5)
    assert found == wanted
    assert found.reason == "max_tokens"


@pytest.mark.slow
def test_a_question_that_does_not_fit_is_refused(address: str) -> None:
    policy = next(policies(TOP))
    with (
        connect(address, policy, EMBEDDED, max_thinking_tokens=1000) as server,
        pytest.raises(UserError, match="do not fit into the server's context"),
    ):
        serve(server, "1 + 1 = ?")
