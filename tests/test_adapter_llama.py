from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from frozen_nets import random_policy
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.adapters.llama_cpp import BudgetProcessor
from rlbudget.adapters.numpy_signals import token_signals
from rlbudget.adapters.plan import Plan, make_plan
from rlbudget.decode import Decoded, decode
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.sampling import token_signals as torch_signals
from rlbudget.models.sequences import Sequences
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy import Policy
from rlbudget.tasks.load import load_task

torch.set_num_threads(1)

PRICE = 1e-3
CAP = 120


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=12, seed=5).questions]


def policies() -> Iterator[Policy]:
    recorded = {"profile": "embedded", "stride": 8, "max_tokens": CAP}
    for seed in range(3):
        yield random_policy(seed=seed, trained={"traces": {"recorded": recorded}})


def plan_for(model: TransformersModel, policy: Policy) -> Plan:
    return make_plan(
        policy,
        model.tokenizer,
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
        for question in questions:
            budget = BudgetProcessor(plan)
            run(model, budget, question)
            wanted = decode(model, question, policy, token_price=PRICE, temperature=0)
            check_same(budget, wanted)
            reasons.add(wanted.reason)
    assert reasons >= {"policy", "natural"}


def check_same(budget: BudgetProcessor, wanted: Decoded) -> None:
    found = budget.outcome
    assert (found.thinking_tokens, found.reason) == (wanted.thinking_tokens, wanted.reason)
    assert budget.answer == wanted.answer
    if wanted.stop_probability is None:
        assert found.stop_probability is None
    else:
        assert found.stop_probability == pytest.approx(wanted.stop_probability, abs=1e-4)


def test_a_processor_serves_one_request(model: TransformersModel) -> None:
    budget = BudgetProcessor(plan_for(model, next(policies())))
    scores = np.zeros(len(model.vocabulary.markers), dtype=np.single)
    budget([1, 2], scores)
    with pytest.raises(ValueError, match="one request"):
        budget([1, 2], scores)


def test_a_processor_leaves_room_for_the_answer(model: TransformersModel) -> None:
    with pytest.raises(UserError, match="no room to think"):
        BudgetProcessor(plan_for(model, next(policies())), max_tokens=10)
