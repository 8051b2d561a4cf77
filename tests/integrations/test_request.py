"""The core of the adapters: a plan's checks, and one request's way, without any engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlbudget.decoding.aside import Fork
from rlbudget.decoding.core import HF_GENERATE, HF_PROCESSOR, Core, bind
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.models.reading import Continuation
from rlbudget.policy.dial import Dial
from rlbudget.policy.folder import Policy
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.signals.tokens import SIGNALS
from rlbudget.strategies.compose import Strategy
from rlbudget.strategies.plan import Plan

TOKENIZER = tiny_tokenizer()
EOS, END = 2, 4
SIGNAL = np.zeros(6)
STRIDE = 4


@dataclass
class Scripted:
    """A policy that says one thing a checkpoint, and the last of them for ever."""

    says: Sequence[bool | float | Exception] = (False,)
    features: tuple[str, ...] = ("thinking_tokens", "entropy_mean")
    price_range: tuple[float, float] = PRICES
    stride: int = STRIDE
    asked: list[float] = field(default_factory=list)
    operating_points: dict[str, Any] = field(default_factory=dict)

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        checkpoint = round(float(observation[0])) // self.stride
        said = self.says[min(checkpoint, len(self.says)) - 1]
        self.asked.append(float(observation[0]))
        if isinstance(said, Exception):
            raise said
        return Decision(stop=bool(said), stop_probability=float(said))


def plan(policy: Any = None, tokenizer: Any = TOKENIZER, **rest: Any) -> Core:
    settings: dict[str, Any] = {"profile": "embedded", "stride": STRIDE, "engine": HF_PROCESSOR}
    settings |= rest
    return bind(
        policy or Scripted(),
        tokenizer,
        settings.pop("engine"),
        vocabulary_size=len(tokenizer),
        eos_ids=[EOS],
        **settings,
    )


def spell(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


A = spell("a")[0]


def think(request: Request, tokens: Sequence[int]) -> int:
    """Push tokens while the request thinks; how many it took."""
    for taken, token in enumerate(tokens):
        if not request.thinking:
            return taken
        assert request.forced(token) is None
        request.push(token, SIGNAL)
    return len(tokens)


def answer(request: Request, tokens: Sequence[int] = (9, EOS)) -> list[int]:
    """Write what is forced and then ``tokens``; the forced ones."""
    forced = []
    while (token := request.forced(EOS)) is not None:
        forced.append(token)
        request.push(token)
    for token in tokens:
        assert request.forced(token) is None
        request.push(token)
    return forced


# --- plan


def test_settings_left_out_are_those_of_the_traces_and_of_the_policy() -> None:
    recorded = {"profile": "plain", "stride": 5, "max_tokens": 77}
    trained = {"traces": {"recorded": recorded}}
    policy = random_policy(trained=trained)
    made = bind(policy, TOKENIZER, HF_PROCESSOR, vocabulary_size=len(TOKENIZER), eos_ids=[EOS])
    assert (made.profile.name, made.stride, made.max_thinking) == ("plain", 5, 77)
    assert made.token_price == policy.default_price
    with pytest.raises(UserError, match="trained on checkpoints every 5 tokens"):
        bind(policy, TOKENIZER, HF_PROCESSOR, vocabulary_size=len(TOKENIZER), eos_ids=[EOS],
             stride=4)  # fmt: skip
    with pytest.raises(UserError, match="name an exit profile"):
        plan(Scripted(), profile=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "nobody"}, "no profile 'nobody'"),
        ({"stride": 0}, "stride 0"),
        ({"max_thinking_tokens": 0}, "max_thinking_tokens must be at least 1"),
        ({"token_price": 5.0}, "token price 5"),
        ({"policy": Scripted(features=("mood_mean",))}, "not made from tokens: mood_mean"),
        ({"policy": Scripted(features=feature_names(SIGNALS, "probe"))}, "trial answer"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_request(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)


def test_an_engine_with_trial_answers_takes_a_policy_that_needs_them() -> None:
    plan(Scripted(features=feature_names(SIGNALS, "probe")), engine=HF_GENERATE)


def prefixed_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a space before every text, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=[chr(c) for c in range(33, 127)] + ["\n", "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Done. so 12 it is x (a)\nThe answer is 3"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Has one token for a full stop and the line break after it, as Qwen and Llama 3 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=264,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([".\n", "\n\n"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_an_exit_text_that_reads_differently_in_context_is_refused() -> None:
    with pytest.raises(UserError, match="spells the exit text"):
        plan(tokenizer=prefixed_tokenizer(), profile="plain")


def test_a_tokenizer_that_merges_the_exit_text_with_the_text_before_it_is_no_obstacle() -> None:
    tokenizer = merging_tokenizer()
    alone = spell("\nThe answer is", tokenizer)
    assert spell("Done.\nThe answer is", tokenizer)[-len(alone) :] != alone
    assert list(plan(tokenizer=tokenizer, profile="plain").vocabulary.exit_ids) == alone


# --- request


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    stop_at=st.integers(1, 12),
    cap=st.integers(1, 40),
)
def test_it_stops_where_the_policy_says_or_at_the_cap_and_never_elsewhere(
    n: int, stop_at: int, cap: int
) -> None:
    policy = Scripted([False] * (stop_at - 1) + [True])
    request = Request(plan(policy, max_thinking_tokens=cap))
    taken = think(request, [A] * n)
    stop = min(STRIDE * stop_at, cap)
    assert taken == min(stop, n)
    assert policy.asked == [t for t in range(STRIDE, taken + 1, STRIDE) if t < cap]
    if n < stop:
        assert request.ending.reason is None
        return
    assert answer(request) == [END]
    done = request.ending
    assert done.reason == ("max_tokens" if cap <= STRIDE * stop_at else "policy")
    assert (done.thinking_tokens, done.answer_tokens) == (taken, 3)


def test_the_models_own_end_is_natural() -> None:
    request = Request(plan())
    assert think(request, [*spell("so 12"), END, 9]) == len(spell("so 12")) + 1
    assert answer(request) == []
    done = request.ending
    assert (done.reason, done.thinking_tokens, done.answer_tokens) == (
        "natural",
        len(spell("so 12")),
        3,
    )


@pytest.mark.parametrize("before", ["it is", "it is.", "it is 12.\n"])
def test_an_end_of_several_tokens_belongs_to_the_answer(before: str) -> None:
    request = Request(plan(profile="plain", stride=100))
    tokens = spell(f"{before} The answer is")
    think(request, tokens)
    assert not request.thinking
    done = request.ending
    assert done.reason == "natural"
    text = TOKENIZER.decode(tokens[: done.thinking_tokens])
    assert "The answer is" not in text
    assert "The answer is" in TOKENIZER.decode(tokens[done.thinking_tokens :])
    assert done.thinking_tokens + done.answer_tokens == len(tokens)


def test_an_end_of_sequence_in_the_thinking_becomes_the_exit() -> None:
    request = Request(plan())
    think(request, spell("so 12"))
    assert request.forced(EOS) == END
    assert answer(request) == [END]
    done = request.ending
    assert (done.reason, done.answer_tokens) == ("natural", 3)


def test_room_for_the_answer_is_kept() -> None:
    made = plan()
    with pytest.raises(UserError, match="leaves no room to think"):
        Request(made, max_new_tokens=made.reserve)
    request = Request(made, max_new_tokens=made.reserve + 3)
    assert think(request, [A] * 12) == 3
    assert request.ending.reason == "max_tokens"


def test_an_engine_that_goes_its_own_way_is_let_go() -> None:
    request = Request(plan(Scripted([True]), profile="plain"))
    think(request, [A] * 8)
    assert request.forced(9) == spell("\nThe answer is")[0]
    request.push(9)
    assert request.forced(9) is None


@pytest.mark.parametrize("character", ["é", "…", "🙂"])
def test_there_is_no_checkpoint_inside_a_character(character: str) -> None:
    pieces = [TOKENIZER.convert_tokens_to_ids(piece) for piece in byte_pieces(character)]
    for begun in range(1, len(pieces)):
        policy = Scripted([True])
        request = Request(plan(policy))
        lead = [A] * (STRIDE - begun)
        assert think(request, [*lead, *pieces, *[A] * 20]) == 2 * STRIDE
        assert policy.asked == [2 * STRIDE]
    request = Request(plan(Scripted([True])))
    assert think(request, [*[A] * (STRIDE - len(pieces)), *pieces, 9]) == STRIDE


def byte_pieces(text: str) -> list[str]:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(whole.pre_tokenize_str(text)[0][0])


def test_characters_that_never_end_are_cut_at_the_cap() -> None:
    first = TOKENIZER.convert_tokens_to_ids(byte_pieces("🙂")[0])
    request = Request(plan(Scripted([True]), max_thinking_tokens=STRIDE + 1))
    assert think(request, [first] * 20) == STRIDE + 1
    assert request.ending.reason == "max_tokens"


@pytest.mark.parametrize("says", [RuntimeError("out of order"), float("nan")])
def test_a_policy_that_breaks_down_costs_no_answer_and_is_logged_once(
    says: float | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    made = plan(Scripted([0.0, says]), max_thinking_tokens=50)
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        for natural in (True, False):
            request = Request(made)
            think(request, [*[A] * 20, *([END] if natural else [A] * 50)])
            done = request.ending
            assert done.reason == "policy_failed"
            assert done.thinking_tokens == (20 if natural else 50)
            assert done.stop_probability == 0.0
            assert ("out of order" if isinstance(says, Exception) else "nan") in str(done.message)
    assert made.failures.count == 2
    assert len(caplog.records) == 1


def test_trial_answers_are_made_at_checkpoints_only_and_counted() -> None:
    policy = Scripted([False, False, True], features=("thinking_tokens", "probe_confidence"))
    request = Request(plan(policy, engine=HF_GENERATE))
    made = []
    for count in range(1, 13):
        wish = request.push(9, SIGNAL)
        if wish is not None:
            assert isinstance(wish, Fork)
            made.append(count)
            assert request.forked(Continuation((9, 9, EOS), (-1.0, -1.0, -1.0), 0.5)) is None
    assert made == [4, 8, 12]
    done = request.ending
    assert (done.reason, done.probe_tokens, done.thinking_tokens) == ("policy", 9, 12)


def test_a_price_of_its_own_is_checked() -> None:
    with pytest.raises(UserError, match="token price 3"):
        Request(plan(random_policy(FREE)), token_price=3.0)


# --- efforts


def pointed(*swept: Swept) -> Policy:
    return random_policy(FREE, operating_points=choose_points(swept, 1000))


def test_no_effort_forces_the_exit_at_once() -> None:
    request = Request(plan(Scripted([True])), prompt=spell("<think>"), dial=Dial(effort="none"))
    assert not request.thinking
    assert answer(request) == list(plan().vocabulary.exit_ids)
    assert request.done
    assert (request.ending.thinking_tokens, request.ending.reason) == (0, "max_tokens")


def test_no_effort_waits_for_a_model_that_opens_its_thinking_itself() -> None:
    request = Request(plan(Scripted([True])), prompt=spell("a"), dial=Dial(effort="none"))
    for token in spell("<think>"):
        assert request.forced(token) is None
        request.push(token)
    assert not request.thinking
    assert answer(request) == list(plan().vocabulary.exit_ids)
    assert request.ending.thinking_tokens == 0


def test_no_effort_of_a_prompt_without_thinking_is_left_alone() -> None:
    prompt = spell("<think>") + spell("</think>")
    request = Request(plan(), prompt=prompt, dial=Dial(effort="none"))
    assert request.forced(EOS) is None
    assert request.ending.reason == "off"


def test_an_effort_that_no_price_holds_never_stops() -> None:
    hasty = Scripted([True])
    hasty.operating_points = choose_points([], 9)
    request = Request(plan(hasty, max_thinking_tokens=20), dial=Dial(effort="high"))
    assert think(request, [A] * 30) == 20
    assert request.ending.reason == "max_tokens"
    assert hasty.asked == []


def test_an_effort_is_served_within_the_range_of_the_ensemble() -> None:
    cheap = pointed(Swept(2e-5, 0.0, 0.0, 0.1))
    ensemble = Plan(
        {"a": cheap, "b": random_policy(FREE, seed=2, price_range=(1e-3, 1e-2))},
        Strategy(combine="mean"),
    )
    core = plan(ensemble)
    assert core.spot(Dial(effort="medium")).token_price == 1e-3
    assert Request(core, dial=Dial(effort="medium")).token_price == 1e-3
    with pytest.raises(UserError, match="covers one policy alone"):
        Request(core, dial=Dial(max_em_loss=0.5))


def test_what_a_request_dials_is_before_what_the_plan_says() -> None:
    policy = pointed(Swept(1e-4, 0.0, 0.0, 0.1), Swept(1e-3, 0.02, 0.0, 0.4))
    core = plan(Plan({"p": policy}, dial=Dial(effort="low")))
    assert core.token_price == Request(core).token_price == 1e-3
    assert Request(core, dial=Dial()).token_price == 1e-3
    assert Request(core, dial=Dial(effort="medium")).token_price == 1e-4
    assert Request(core, token_price=5e-3).token_price == 5e-3
    with pytest.raises(UserError, match="freeze its run again"):
        plan(Plan({"p": random_policy(FREE)}, dial=Dial(effort="low")))
