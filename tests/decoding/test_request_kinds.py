"""One request's way through the kinds of streams there are: opened, closed, looping, calling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from rlbudget.decoding.aside import Fork
from rlbudget.decoding.core import HF_GENERATE, HF_PROCESSOR, Core, Engine, bind
from rlbudget.decoding.request import Request
from rlbudget.models.reading import Continuation
from rlbudget.policy.network import Decision
from rlbudget.signals.loops import tokens_needed
from rlbudget.signals.tokens import NO_SENTENCE_END, TokenWindow, Window
from rlbudget.strategies.compose import Strategy
from rlbudget.strategies.correction.correct import Correction
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.feedback.harvest import scored_trace
from rlbudget.strategies.feedback.log import Feedback
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.traces.columns import table_of

EOS, START, END = 2, 3, 4
STRIDE = 4
SIGNAL = np.zeros(6)
CHATS = ("<|im_start|>", "<|im_end|>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")
TOOL = "<tool_call>"


@dataclass
class Scripted:
    """Stops from a count of thinking tokens on; may raise there instead."""

    at: int | None = None
    fault: Exception | None = None
    features: tuple[str, ...] = ("thinking_tokens", "entropy_mean")
    price_range: tuple[float, float] = PRICES
    asked: list[int] = field(default_factory=list)

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        tokens = round(float(observation[0]))
        self.asked.append(tokens)
        if self.fault is not None:
            raise self.fault
        return Decision(stop=self.at is not None and tokens >= self.at, stop_probability=0.5)


@cache
def tokenizer(marks: Sequence[str] = CHATS, *, special: bool = False) -> PreTrainedTokenizerFast:
    """Knows the start and the end of the thinking and, as ordinary tokens, these marks."""
    made = tiny_tokenizer()
    if special:
        made.add_special_tokens({"additional_special_tokens": list(marks)})
    else:
        made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return made


def core(policy: Any = None, *, engine: Engine = HF_PROCESSOR, tokens: Any = None,
         profile: str = "think", **rest: Any) -> Core:  # fmt: skip
    tokens = tokens or tokenizer()
    settings: dict[str, Any] = {"stride": STRIDE, "max_thinking_tokens": 2000} | rest
    return bind(policy or Scripted(), tokens, engine, vocabulary_size=len(tokens), eos_ids=[EOS],
                profile=profile, **settings)  # fmt: skip


def spell(text: str, tokens: Any = None) -> list[int]:
    return list((tokens or tokenizer())(text, add_special_tokens=False)["input_ids"])


def feed(request: Request, ids: Sequence[int]) -> list[int]:
    """Push tokens, or what is forced in their place; the forced ones."""
    forced = []
    for token in ids:
        must = request.forced(token)
        if must is not None:
            forced.append(must)
        request.push(token if must is None else must, SIGNAL if request.thinking else None)
    return forced


# --- whether thinking is open


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<\uff5cUser\uff5c>2 + 2?<\uff5cAssistant\uff5c><think>\n", "thinking"),
        ("<\uff5cUser\uff5c>2 + 2?<\uff5cAssistant\uff5c></think>", "closed"),
        ("<\uff5cUser\uff5c>what ends at </think> here?<\uff5cAssistant\uff5c>", "waiting"),
        ("<\uff5cUser\uff5c>what is <think> here?<\uff5cAssistant\uff5c>", "waiting"),
        ("<|im_start|>user\n2 + 2? /no_think<|im_end|>\n<|im_start|>assistant\n"
         "<think>\n\n</think>\n\n", "closed"),
        ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n", "waiting"),
        ("<|im_start|>assistant\n<think>\nold</think>4<|im_end|>\n<|im_start|>user\nagain?"
         "<|im_end|>\n<|im_start|>assistant\n<think>\n", "thinking"),
        ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nso 2 + 2",
         "thinking"),
        ("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nso</think>\nThe",
         "closed"),
        ("2 + 2?\n<think>\n", "thinking"),
        ("User: what does </think> mean?\nAssistant:", "waiting"),
        ("2 + 2?\n<think>\n</think>\n\n", "closed"),
        ("", "waiting"),
    ],
)  # fmt: skip
def test_the_prompt_says_whether_thinking_is_open(prompt: str, state: str, special: bool) -> None:
    tokens = tokenizer(special=special)
    request = Request(core(tokens=tokens), prompt=spell(prompt, tokens))
    found = "thinking" if request.thinking else "closed" if request.idle else "waiting"
    assert found == state


def test_ten_thousand_tokens_of_prefilled_thinking_are_thinking() -> None:
    prompt = [*spell("2 + 2?<think>\n"), *spell("so ") * 10_000]
    assert Request(core(), prompt=prompt).thinking


def test_closed_thinking_is_left_alone_to_its_end() -> None:
    request = Request(core(Scripted(4)), prompt=spell("2?<think>\n\n</think>\n\n"))
    assert feed(request, [*spell("so it is 12, or so"), EOS]) == []
    assert request.done
    assert request.ending.reason == "off"
    assert request.ending.thinking_tokens == 0


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "\n<think>\n"])
def test_a_model_that_opens_its_thinking_is_counted_as_one_whose_prompt_did(opening: str) -> None:
    thoughts = [*spell("so it is 12. wait, so it is 12"), END, *spell("12"), EOS]
    policy, other = Scripted(), Scripted()
    request = Request(core(policy), prompt=spell("2 + 2?"))
    feed(request, [*spell(opening), *thoughts])
    recorded = Request(core(other), prompt=spell("2 + 2?<think>\n"))
    feed(recorded, thoughts)
    assert request.ending.thinking_tokens == recorded.ending.thinking_tokens > 2 * STRIDE
    assert policy.asked == other.asked
    opened = len(spell(opening))
    assert request.ending.answer_tokens == recorded.ending.answer_tokens + opened


def test_a_profile_without_a_line_break_counts_one_as_a_thought() -> None:
    request = Request(core(profile="embedded"), prompt=spell("2 + 2?"))
    feed(request, [*spell("<think>\nso"), END])
    assert request.ending.thinking_tokens == len(spell("\nso"))


def test_what_a_model_writes_before_its_thinking_is_taken_from_the_room() -> None:
    made = core()
    request = Request(made, prompt=spell("2?"), max_new_tokens=made.reserve + 6)
    feed(request, [*spell("<think>\n"), *spell("a") * 4])
    assert request.ending.reason == "max_tokens"
    assert request.ending.thinking_tokens == 4


def test_a_model_that_does_not_think_is_left_alone() -> None:
    request = Request(core(Scripted(4)), prompt=spell("2 + 2?"))
    assert feed(request, [*spell("It is 4, and so on, and so on."), EOS]) == []
    assert (request.done, request.ending.reason) == (True, "off")


# --- ends of sequence


def test_an_end_that_an_engine_lets_through_is_no_thought() -> None:
    request = Request(core())
    feed(request, spell("so"))
    request.push(EOS, SIGNAL)
    done = request.ending
    assert request.done
    assert (done.reason, done.thinking_tokens, done.answer_tokens) == (
        "natural", len(spell("so")), 1,
    )  # fmt: skip


def test_any_of_several_ends_becomes_the_exit() -> None:
    tokens = tokenizer()
    other = spell("<|im_end|>")[0]
    made = bind(Scripted(), tokens, HF_PROCESSOR, vocabulary_size=len(tokens), profile="think",
                eos_ids=[EOS, other], stride=STRIDE, max_thinking_tokens=99)  # fmt: skip
    for end in (EOS, other):
        request = Request(made)
        feed(request, spell("so it"))
        assert request.forced(end) == made.vocabulary.exit_ids[0]
        feed(request, [end] * len(made.vocabulary.exit_ids))
        request.push(other)
        assert request.done
        assert request.ending.thinking_tokens == len(spell("so it"))


def test_what_stands_after_a_second_end_is_the_answer() -> None:
    request = Request(core(profile="embedded"))
    feed(request, [*spell("so"), END, *spell(" it is 5 or 4"), END, *spell("4"), EOS])
    assert request.answer == "4"


def test_a_closed_request_is_not_used_again() -> None:
    request = Request(core(engine=HF_GENERATE))
    feed(request, [*spell("so"), END, *spell("4"), EOS])
    request.close()
    with pytest.raises(ValueError, match="make a new one"):
        request.push(9)


# --- tool calls


FAMILIES = (TOOL, "[TOOL_CALLS]", "<function_calls>", "<minimax:tool_call>", "<|python_tag|>",
            "<\uff5ctool\u2581calls\u2581begin\uff5c>")  # fmt: skip


@pytest.mark.parametrize("text", FAMILIES)
@pytest.mark.parametrize("whole", [True, False])
def test_a_tool_call_in_the_thinking_is_never_cut(text: str, whole: bool) -> None:
    tokens = tokenizer((text,)) if whole else tokenizer()
    call = spell(text, tokens)
    assert (len(call) == 1) == whole
    for lead in range(1, STRIDE + 1):
        request = Request(core(Scripted(STRIDE + 1), tokens=tokens))
        ids = [*spell("a", tokens) * lead, *call, *spell('{"name": "f"} \n' * 30, tokens), EOS]
        assert feed(request, ids) == []
        assert (request.done, request.ending.reason) == (True, "tool_call")


def test_the_cap_waits_for_a_tool_call_that_is_half_spelled() -> None:
    call = spell(TOOL)
    for lead in range(1, len(call)):
        request = Request(core(max_thinking_tokens=8 + lead))
        feed(request, [*spell("a") * 8, *call, *spell("a") * 20])
        begun = len(tokenizer().decode(call[:lead])) >= 4
        assert request.ending.reason == ("tool_call" if begun else "max_tokens")
    request = Request(core(max_thinking_tokens=8 + len(call) - 1))
    feed(request, [*spell("a") * 8, *call[:-1], *spell("a") * 20])
    assert request.ending.reason == "max_tokens"


def test_a_comparison_is_no_tool_call() -> None:
    policy = Scripted()
    request = Request(core(policy))
    feed(request, spell("if a < b > c and [a, b] are tool calls < so > it is"))
    assert request.thinking
    assert policy.asked == list(range(STRIDE, request.ending.thinking_tokens + 1, STRIDE))


# --- loops


def looping(period: int, *, extra: int = 0) -> list[int]:
    body = [10 + i for i in range(period)]
    return (body * (tokens_needed(period) // period + 2))[: tokens_needed(period) + extra]


@pytest.mark.parametrize("period", [1, 3, 40, 200])
@pytest.mark.parametrize("fault", [None, RuntimeError("out of order")])
def test_exact_repetition_closes_the_thinking_and_answers(
    period: int, fault: Exception | None
) -> None:
    request = Request(core(Scripted(fault=fault)))
    lead = spell("so it is")
    forced = feed(request, [*lead, *looping(period)])
    assert (forced, request.thinking) == ([], False)
    exit_ids = core().vocabulary.exit_ids
    assert feed(request, [9] * len(exit_ids)) == list(exit_ids)
    feed(request, [*spell("12"), EOS])
    done = request.ending
    assert (request.done, request.answer, done.reason) == (True, "12", "loop")
    assert done.thinking_tokens == len(lead) + tokens_needed(period)
    assert (done.message is None) == (fault is None)


def test_a_loop_inside_a_tool_call_and_one_in_the_answer_go_on() -> None:
    for before in (spell(TOOL), [END]):
        request = Request(core())
        assert feed(request, [*spell("so"), *before, *looping(3, extra=50)]) == []


def test_a_plan_may_let_loops_go_on() -> None:
    request = Request(core(Plan({"policy": Scripted()}, loops=False)))
    assert feed(request, looping(2, extra=90)) == []
    assert request.thinking


def fork(request: Request, wish: Any, text: str = "7") -> None:
    while wish is not None:
        assert isinstance(wish, Fork)
        ids = (*spell(text), EOS)
        wish = request.forked(Continuation(ids, (-0.5,) * len(ids), 0.1))


def test_an_audited_loop_is_noted_and_goes_on_to_its_end(tmp_path: Path) -> None:
    plan = Plan({"policy": Scripted()}, audit=LogSettings(tmp_path, 1.0))
    made = core(plan, engine=HF_GENERATE, max_thinking_tokens=400, stride=100)
    request = Request(made, question="2?")
    for token in [*looping(2), *spell("so it is"), END, *spell("12"), EOS]:
        fork(request, request.push(token, SIGNAL))
    request.close()
    assert request.decoded().reason == "natural"
    (row,) = lines(tmp_path / "decisions.jsonl")
    assert row["stop"]["reason"] == "loop"
    assert row["stop"]["thinking_tokens"] == tokens_needed(2)
    (audit,) = lines(tmp_path / "audits.jsonl")
    assert [p["thinking_tokens"] for p in audit["checkpoints"]] == [100, 200]


# --- faults


def test_a_shell_that_never_settles_a_wish_still_gets_the_decode() -> None:
    policy = Scripted(8, features=("thinking_tokens", "probe_confidence"))
    request = Request(core(policy, engine=HF_GENERATE))
    assert request.push(9, SIGNAL) is None
    feed(request, [*[9] * 20, END, *spell("12"), EOS])
    assert request.done
    assert request.answer == "12"
    assert request.ending.reason == "policy_failed"
    assert "left undone" in str(request.ending.message)


@pytest.mark.filterwarnings("error")
def test_a_trial_answer_without_tokens_is_an_empty_one() -> None:
    policy = Scripted(8, features=("thinking_tokens", "probe_confidence"))
    request = Request(core(policy, engine=HF_GENERATE))
    for _ in range(8):
        if request.push(9, SIGNAL) is not None:
            request.forked(Continuation((), (), float("nan")))
    assert request.ending.reason == "policy"
    assert policy.asked == [4, 8]


@pytest.mark.parametrize("says", [None, [1.0] * 5, [[1.0] * 6], [float("nan")] * 6, "no numbers"])
def test_signals_that_are_none_switch_the_policy_off(says: Any) -> None:
    request = Request(core(Scripted(8)))
    for token in [*[9] * 12, END]:
        request.push(token, says)
    assert request.ending.reason == "policy_failed"


# --- the log


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("engine", [HF_PROCESSOR, HF_GENERATE])
@pytest.mark.parametrize(
    ("prompt", "off", "ids", "reason"),
    [
        ("<think>\n", False, [*spell("so it is"), END, 9, EOS], "natural"),
        ("<think>\n", False, [9] * 8, "policy"),
        ("<think>\n", True, [9, 9, EOS], "off"),
        ("</think>\n", False, [9, 9, EOS], "off"),
        ("2?", False, [EOS], "off"),
        ("2?", False, [9, 9, EOS], "off"),
        ("<think>\n", False, [9, *spell(TOOL), 9, EOS], "tool_call"),
        ("<think>\n", False, [9, EOS], "natural"),
    ],
)
def test_every_request_is_logged_once(
    engine: Engine, prompt: str, off: bool, ids: list[int], reason: str, tmp_path: Path
) -> None:
    plan = Plan({"policy": Scripted(8)}, audit=LogSettings(tmp_path, 0.0))
    request = Request(core(plan, engine=engine), prompt=spell(prompt), off=off, question="2?")
    for token in ids:
        request.push(token, SIGNAL)
    request.finish()
    request.close()
    request.close()
    rows = lines(tmp_path / "decisions.jsonl")
    assert [row["stop"]["reason"] for row in rows] == [reason]
    assert not (tmp_path / "audits.jsonl").exists()


@pytest.mark.parametrize("ids", [[9, *spell(TOOL), 9, EOS], [9, 9, 9, 9, 9, EOS]])
def test_what_gave_no_answer_to_compare_with_is_no_audit(ids: list[int], tmp_path: Path) -> None:
    """A tool call, and a fork that failed, leave nothing that could be replayed."""
    plan = Plan({"policy": Scripted(4)}, audit=LogSettings(tmp_path, 1.0))
    request = Request(core(plan, engine=HF_GENERATE), question="2?")
    for token in ids:
        if request.push(token, SIGNAL) is not None:
            request.forked(RuntimeError("no memory"))
    request.finish()
    request.close()
    assert len(lines(tmp_path / "decisions.jsonl")) == 1
    assert not (tmp_path / "audits.jsonl").exists()


# --- laws


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_request_ends_where_a_plain_reading_of_its_stream_ends(data: st.DataObject) -> None:
    """Cap, stride, stop, natural end, end of sequence, loop and tool call, whichever is first."""
    made_of = st.sampled_from([9, 9, 9, 11, 12, *spell("a"), END, EOS, -1, -2])
    raw = data.draw(st.lists(made_of, max_size=40))
    stride, cap = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 400))
    at = data.draw(st.one_of(st.none(), st.integers(1, 60)))
    ids: list[int] = []
    for token in raw:
        ids += looping(2) if token == -1 else spell(TOOL) if token == -2 else [token]
    made = core(Scripted(at), stride=stride, max_thinking_tokens=cap)
    request = Request(made)
    for token in ids:
        if not request.thinking:
            break
        must = request.forced(token)
        if must is not None:
            break
        request.push(token, SIGNAL)
    done = request.ending
    assert (done.thinking_tokens, done.reason) == by_hand(ids, stride, cap, at)


def by_hand(ids: Sequence[int], stride: int, cap: int, at: int | None) -> tuple[int, str | None]:
    tool = spell(TOOL)
    for count, token in enumerate(ids, start=1):
        so_far = list(ids[:count])
        if token == END:
            return count - 1, "natural"
        if token == EOS:
            return count - 1, "natural"
        if so_far[-len(tool) :] == tool:
            return count, "tool_call"
        if in_loop(so_far):
            return count, "loop"
        text = tokenizer().decode(so_far[-24:])
        if any(text.endswith(TOOL[:n]) for n in range(4, len(TOOL))):
            continue
        if count >= cap:
            return count, "max_tokens"
        if count % stride == 0 and at is not None and count >= at:
            return count, "policy"
    return len(ids), None


def in_loop(ids: Sequence[int]) -> bool:
    for period in range(1, 20):
        tail = ids[-tokens_needed(period) :]
        if len(tail) == tokens_needed(period) and all(
            a == b for a, b in zip(tail, tail[period:], strict=False)
        ):
            return True
    return False


NUMBER = st.floats(-50, 50, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(NUMBER, min_size=6, max_size=6), st.booleans(), st.booleans(),
                  st.booleans(), st.booleans()),
        max_size=30,
    )
)  # fmt: skip
def test_one_decodes_window_is_the_window_of_many(rows: list[Any]) -> None:
    one, many = TokenWindow(), Window(1)
    for values, hedge, conclusion, end, read in rows:
        one.push(values, (hedge, conclusion, end))
        many.push(np.array([values]), [[hedge, conclusion, end]])
        if read:
            assert one.read() == {name: float(v[0]) for name, v in many.read().items()}
    assert one.read()["end_gap_min"] <= NO_SENTENCE_END


# --- a whole plan


RULES = """
[[rule]]
name = "unsure"
signal = { entropy_mean = "> 0.9" }
then = "go on"
[[rule]]
name = "sure"
signal = { margin_mean = "> 1.6" }
tokens = "> 8"
then = "stop"
[[rule]]
name = "gold"
metadata = { tier = "gold" }
min_tokens = 24
price = 0.5
[[rule]]
name = "long"
question = "long"
max_tokens = 40
"""


@cache
def whole_plan(folder: Path) -> Plan:
    policy = random_policy(seed=3)
    rng = np.random.default_rng(5)
    sizes = [len(FREE), 8, 1]
    guard = ImpactModel(
        FREE,
        policy.tensors["obs_mean"].astype(np.float64),
        policy.tensors["obs_std"].astype(np.float64),
        tuple(rng.normal(0, 1, shape) for shape in pairwise(sizes)),
        tuple(rng.normal(0, 1, n) for n in sizes[1:]),
    )
    (folder / "rules.toml").write_text(RULES)
    strategy = Strategy(guard=guard, max_risk=0.5, rules=folder / "rules.toml")
    return Plan({"policy": policy}, strategy)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 70), question=st.sampled_from(["long", "short"]),
    metadata=st.sampled_from([{}, {"tier": "gold"}]), price=st.sampled_from([1e-5, 3e-4, 1e-2]),
)  # fmt: skip
def test_guard_and_rules_stop_a_request_where_the_replay_of_its_audit_stops(
    seed: int, n: int, question: str, metadata: dict[str, str], price: float, place: Path
) -> None:
    plan = whole_plan(place)
    rng = np.random.default_rng(seed)
    signals = np.abs(rng.normal(0.8, 0.6, (n, 6)))
    ids = rng.integers(20, 250, n).tolist()

    def served(share: float, log: Path) -> Request:
        logged = replace(plan, audit=LogSettings(log, share))
        made = core(logged, engine=HF_GENERATE, profile="embedded")
        request = Request(made, question=question, metadata=metadata, token_price=price,
                          request_id=f"r{seed}")  # fmt: skip
        for token, values in zip(ids, signals, strict=True):
            if not request.thinking:
                break
            fork(request, request.push(token, values), text="7")
        while (token := request.forced()) is not None:
            request.push(token)
        for token in [*([END] if request.thinking else []), *spell("7"), EOS]:
            request.push(token)
        request.close()
        return request

    with TemporaryDirectory() as folder:
        live = served(0.0, Path(folder) / "live").decoded()
        full = served(1.0, Path(folder) / "audited").decoded()
        (logged,) = read_log(Path(folder) / "audited").decisions.values()
        (audit,) = read_log(Path(folder) / "audited").audits.values()
    assert full.reason == "natural"
    assert logged.stop.stopped_at == live.stopped_at
    assert logged.stop.tokens == live.total_tokens
    assert logged.stop.stop_probability == live.stop_probability
    scored = scored_trace(audit, Feedback(audit.trace_id, "", target="7"))
    assert scored is not None
    assert scored.final.answer_tokens == full.answer_tokens
    if not scored.checkpoints:
        assert live.stopped_at is None
        return
    composed = plan.compose()
    assert composed is not None
    facts = {audit.trace_id: RequestFacts(question, "", metadata)}
    played = composed.replay(table_of([scored]), price, facts)
    at = [point.thinking_tokens for point in scored.checkpoints]
    assert live.stopped_at == (None if played.stops[0] < 0 else at[played.stops[0]])
    assert played.outcome.tokens[0] == live.total_tokens


# --- corrections


def doubting(bias: float, **rest: Any) -> Correction:
    """A correction whose doubt is the same everywhere."""
    doubt = ImpactModel(("thinking_tokens",), np.zeros(1), np.ones(1), (np.zeros((1, 1)),),
                        (np.array([bias]),))  # fmt: skip
    settings: dict[str, Any] = {"threshold": 0.5, "budget": 8, "rounds": 2}
    return Correction(doubt, **(settings | rest))


def corrected(correction: Correction, log: Path, share: float = 0.0, **rest: Any) -> Core:
    plan = Plan({"policy": Scripted(8)}, correction=correction, audit=LogSettings(log, share))
    return core(plan, engine=HF_GENERATE, profile="embedded", **rest)


def decode(made: Core, ids: Sequence[int], answers: Sequence[str]) -> Request:
    """Push a stream; each exit that is written aside gives the next answer."""
    request, given = Request(made, question="2?", request_id="r"), iter(answers)
    for token in ids:
        if request.done:
            break
        must = request.forced(token)
        wish = request.push(token if must is None else must, SIGNAL)
        while wish is not None:
            text = (*spell(next(given)), EOS)
            wish = request.forked(Continuation(text, (-0.1,) * len(text), 0.1))
    request.close()
    return request


def test_a_doubted_exit_thinks_on_and_the_last_of_equals_is_kept(tmp_path: Path) -> None:
    request = decode(corrected(doubting(5.0), tmp_path), [9] * 99, ["1", "2", "3"])
    done = request.decoded()
    assert (done.answer, done.reason, done.resumed) == ("3", "policy", 2)
    assert (done.thinking_tokens, done.stopped_at) == (24, 24)
    assert done.answer_tokens == 3 * 3


def test_an_exit_that_is_not_doubted_is_the_answer(tmp_path: Path) -> None:
    request = decode(corrected(doubting(-5.0), tmp_path), [9] * 99, ["1"])
    done = request.decoded()
    assert (done.answer, done.thinking_tokens, done.answer_tokens, done.resumed) == ("1", 8, 3, 0)


@pytest.mark.parametrize(
    ("ids", "cap", "reason", "thinking"),
    [
        ([9] * 12 + [END, *spell("7"), EOS], 99, "natural", 12),
        ([9] * 14 + [END, *spell("7"), EOS], 14, "max_tokens", 14),
        ([9] * 14 + [EOS, *spell("7"), EOS], 99, "natural", 14),
        ([9] * 8 + looping(2) + [END, *spell("7"), EOS], 600, "loop", tokens_needed(2) + 8),
    ],
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_ends_a_resumed_thinking_gives_the_answer(
    ids: list[int], cap: int, reason: str, thinking: int, share: float, tmp_path: Path
) -> None:
    correction = doubting(5.0, budget=None, rounds=1)
    made = corrected(correction, tmp_path, share, max_thinking_tokens=cap)
    request = decode(made, ids, ["1"] * 999)
    done = request.decoded()
    (row,) = lines(tmp_path / "decisions.jsonl")
    assert row["stop"]["reason"] == reason
    assert row["stop"]["thinking_tokens"] == thinking
    assert row["correction"]["resumed"] == 1
    paid = row["stop"]["answer_tokens"]
    assert paid == 3 + 3  # the exit that was taken back, and the answer
    if not share:
        assert (done.answer, done.reason, done.answer_tokens) == ("7", reason, paid)
        return
    (audit,) = lines(tmp_path / "audits.jsonl")
    assert audit["final"]["answer"] == "7"
    assert audit["final"]["answer_tokens"] == done.answer_tokens == 3


def test_an_audited_correction_notes_what_it_would_have_done(tmp_path: Path) -> None:
    ids = [*[9] * 40, END, *spell("7"), EOS]
    live = decode(corrected(doubting(5.0), tmp_path / "live"), ids, ["1", "2", "3"]).decoded()
    full = decode(corrected(doubting(5.0), tmp_path / "full", 1.0), ids, list("123456789") * 2)
    (row,) = lines(tmp_path / "full" / "decisions.jsonl")
    stop = row["stop"]
    assert full.decoded().answer == "7"
    assert (stop["stopped_at"], stop["thinking_tokens"], stop["answer_tokens"]) == (
        live.stopped_at, live.thinking_tokens, live.answer_tokens,
    )  # fmt: skip


def test_a_fork_that_fails_in_a_resumed_thinking_costs_no_answer(tmp_path: Path) -> None:
    request = Request(corrected(doubting(5.0), tmp_path), question="2?")
    wish = None
    for _ in range(8):
        wish = request.push(9, SIGNAL)
    assert isinstance(wish, Fork)
    ids = (*spell("1"), EOS)
    assert request.forked(Continuation(ids, (-0.1,) * len(ids), 0.1)) is None
    for _ in range(8):
        wish = request.push(9, SIGNAL)
    assert isinstance(wish, Fork)
    request.forked(RuntimeError("no memory"))
    assert request.done
    done = request.decoded()
    assert (done.answer, done.stopped_at) == ("1", 8)
    assert "no memory" in str(done.message)


def test_a_wish_left_undone_in_a_resumed_thinking_costs_no_answer(tmp_path: Path) -> None:
    request = Request(corrected(doubting(5.0), tmp_path), question="2?")
    for count in range(1, 40):
        wish = request.push(9, SIGNAL)
        if wish is not None and count == 8:
            ids = (*spell("1"), EOS)
            request.forked(Continuation(ids, (-0.1,) * len(ids), 0.1))
        if request.done:
            break
    assert request.decoded().answer == "1"
