"""Rows of one batch that differ in what they say of themselves, and several of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_nets import PRICES, random_policy
from tiny_model import tiny_network, tiny_tokenizer

from rlbudget.decoding.decoded import Ending
from rlbudget.errors import UserError
from rlbudget.integrations.hf import BudgetProcessor
from rlbudget.integrations.hf_generate import BudgetGenerate
from rlbudget.policy.dial import Dial
from rlbudget.policy.network import Decision
from rlbudget.strategies.compose import Strategy
from rlbudget.strategies.plan import Plan

torch.set_num_threads(1)
CAP, ROOM = 40, 33
RULES = """
[[rule]]
name = "gold"
metadata = { tier = "gold" }
then = "full"
[[rule]]
name = "bulk"
metadata = { tier = "bulk" }
max_tokens = 8
[[rule]]
name = "others"
max_tokens = 24
"""
TIERS = ("gold", "bulk", "none", "bulk", "gold", "none")
NEVER = [
    token for piece, token in tiny_tokenizer().get_vocab().items()
    if token in (2, 4) or not piece.isascii()
]  # fmt: skip
"""ends, and parts of characters, inside which there is no checkpoint"""
WAYS = [BudgetProcessor, BudgetGenerate]


class ByPrice:
    """Stops the sooner the dearer a token is."""

    features = ("thinking_tokens", "entropy_mean")
    price_range, preset, threshold = PRICES, "free", 0.5

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        return Decision(bool(observation[0] * token_price >= 0.016), 0.5)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_network(len(tiny_tokenizer()))


def plan(folder: Path) -> Plan:
    (folder / "rules.toml").write_text(RULES)
    return Plan(
        {"policy": random_policy(seed=1, threshold=0.9999)}, Strategy(rules=folder / "rules.toml")
    )


def run(network: Any, way: Any, policy: Any, prompts: Sequence[Sequence[int]], *, n: int = 1,
        sample: bool = False, **said: Any) -> tuple[list[Ending], list[list[int]]]:  # fmt: skip
    budget = way.for_model(
        network, tiny_tokenizer(), policy, profile="embedded", stride=8, max_thinking_tokens=CAP,
        **said,
    )  # fmt: skip
    how: dict[str, Any] = {"logits_processor": [budget]}
    if way is BudgetGenerate:
        how = {"custom_generate": budget}
    torch.manual_seed(0)
    ids = torch.tensor(prompts)
    out = network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=CAP + ROOM, do_sample=sample,
        num_return_sequences=n, suppress_tokens=NEVER, **how,
    )  # fmt: skip
    endings = budget.report(out) if way is BudgetProcessor else budget.report()
    return endings, out[:, ids.shape[1] :].tolist()


def prompts_of(n: int) -> list[list[int]]:
    return [[1, 20 + row, 3] for row in range(n)]


def metadata_of(tiers: Sequence[str]) -> list[Mapping[str, Any]]:
    return [{"tier": tier} for tier in tiers]


@pytest.mark.parametrize("way", WAYS)
def test_rules_see_the_metadata_of_each_row(network: Any, way: Any, tmp_path: Path) -> None:
    given = metadata_of(TIERS)
    endings, _ = run(network, way, plan(tmp_path), prompts_of(6), metadata=given)
    most = {"gold": CAP, "bulk": 8, "none": 24}
    assert [ending.thinking_tokens for ending in endings] == [most[tier] for tier in TIERS]
    for row, tier in enumerate(TIERS):
        alone, _ = run(
            network, way, plan(tmp_path), [prompts_of(6)[row]], metadata=metadata_of([tier])
        )
        assert alone[0].thinking_tokens == endings[row].thinking_tokens


@pytest.mark.parametrize("way", WAYS)
def test_rows_have_a_dial_each(network: Any, way: Any) -> None:
    dials = [Dial(token_price=2e-3), None, Dial(effort="none"), Dial(token_price=5e-4)]
    found, _ = run(network, way, ByPrice(), prompts_of(4), dial=dials)
    middle = (PRICES[0] * PRICES[1]) ** 0.5
    assert found[0].thinking_tokens == 8
    assert found[1].thinking_tokens == min(CAP, -(-0.016 // (8 * middle)) * 8)
    assert (found[2].thinking_tokens, found[2].reason) == (0, "max_tokens")
    assert found[3].thinking_tokens == 32


@pytest.mark.parametrize("way", WAYS)
def test_several_answers_of_one_prompt_have_a_state_each(
    network: Any, way: Any, tmp_path: Path
) -> None:
    given = metadata_of(["bulk", "gold"])
    endings, rows = run(
        network, way, plan(tmp_path), prompts_of(2), n=3, sample=True, metadata=given
    )
    assert [ending.thinking_tokens for ending in endings] == [8, 8, 8, CAP, CAP, CAP]
    assert len({tuple(row[:8]) for row in rows}) == 6


def test_metadata_and_dials_that_fit_no_prompt_are_refused(network: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"profile": "embedded", "stride": 8, "max_thinking_tokens": CAP}
    with pytest.raises(UserError, match="3 prompts and 2 questions, metadata or dials"):
        BudgetProcessor.for_model(
            network, tiny_tokenizer(), plan(tmp_path), **settings, questions=["a", "b", "c"],
            metadata=metadata_of(TIERS[:2]),
        )  # fmt: skip
    with pytest.raises(UserError, match="3 prompts and 2 questions, metadata or dials"):
        run(network, BudgetProcessor, plan(tmp_path), prompts_of(3), dial=[None, None])
