"""The torch twins: what they say of many requests at once is what the originals say of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import FREE, random_observations, random_policy, random_prices
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vllm import END, EOS, SIZE, by_request, plan_of, rows
from tiny_model import tiny_tokenizer

from rlbudget.decoding.core import VLLM, bind
from rlbudget.decoding.device.network import Network, Observers, Windows
from rlbudget.decoding.device.repetition import Repetitions
from rlbudget.decoding.device.slots import Rows, Slots
from rlbudget.decoding.device.token_tables import token_tables
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.models.profiles import find_profile
from rlbudget.models.vocabulary import build_vocabulary
from rlbudget.policy.observation import Observer, feature_names
from rlbudget.signals.loops import LONGEST, tokens_needed
from rlbudget.signals.tokens import SIGNALS, Window

CPU = torch.device("cpu")


@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), stride=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_windows_and_observers_see_what_the_originals_see(seed: int, n: int, stride: int) -> None:
    rng = np.random.default_rng(seed)
    windows, observers = Windows(n, CPU), Observers(FREE, n, CPU)
    originals = [(Window(1), Observer(FREE, 1)) for _ in range(n)]
    counts = np.zeros(n, dtype=np.int64)
    for _ in range(30):
        slots = rng.permutation(n)[: rng.integers(1, n + 1)]
        mask = rng.random(len(slots)) < 0.8
        values = rng.exponential(1, (len(slots), 6)).astype(np.float32).astype(np.float64)
        flags = rng.random((len(slots), 3)) < 0.3
        counts[slots] += mask
        here = mask & (counts[slots] % stride == 0)
        where, on = torch.from_numpy(slots), torch.from_numpy(here)
        window = windows.push(
            where, torch.from_numpy(values), torch.from_numpy(flags), torch.from_numpy(mask)
        )
        seen = observers.update(where, window, torch.from_numpy(counts[slots]), on)
        windows.clear(where, on)
        for row, slot in enumerate(slots):
            if mask[row]:
                originals[slot][0].push(values[row : row + 1], flags[row : row + 1])
            if here[row]:
                expected = originals[slot][1].update(
                    np.zeros(1, dtype=np.int64), counts[[slot]], originals[slot][0].read()
                )
                np.testing.assert_allclose(seen[row].numpy(), expected[0], rtol=1e-6, atol=1e-7)


def test_a_slot_forgets_its_last_request() -> None:
    windows, observers = Windows(1, CPU), Observers(FREE, 1, CPU)
    where, on = torch.tensor([0]), torch.tensor([True])
    said = []
    for _ in range(2):
        for _ in range(3):
            window = windows.push(where, torch.full((1, 6), 0.5).double(), torch.ones(1, 3) > 0, on)
            said.append(observers.update(where, window, torch.tensor([3]), on))
        windows.forget(where)
        observers.forget(where)
    assert torch.equal(torch.stack(said[:3]), torch.stack(said[3:]))


@pytest.mark.parametrize("seed", range(4))
def test_the_network_is_the_frozen_one(seed: int) -> None:
    policy = random_policy(seed=seed)
    network = Network(policy, CPU)
    observations, prices = random_observations(policy, 200, seed), random_prices(200, seed)
    features = torch.tensor([network.price_feature(price) for price in prices])
    said = network.stop_probability(torch.from_numpy(observations), features)
    np.testing.assert_allclose(said, policy.stop_probabilities(observations, prices), atol=2e-6)
    observations[0, 3] = np.nan
    assert torch.isnan(network.stop_probability(torch.from_numpy(observations), features))[0]


@given(seed=st.integers(0, 10**6), profile=st.sampled_from(["embedded", "think", "plain"]))
@settings(max_examples=40, deadline=None)
def test_the_tables_read_texts_as_the_tokenizer_does(seed: int, profile: str) -> None:
    tokenizer = tiny_tokenizer(SIZE)
    vocabulary = build_vocabulary(tokenizer, find_profile(profile), SIZE, [EOS])
    tables = token_tables(tokenizer.convert_ids_to_tokens(list(range(SIZE))), vocabulary.end_text)
    rng = np.random.default_rng(seed)
    end = tokenizer(vocabulary.end_text, add_special_tokens=False)["input_ids"]
    split = tokenizer("é", add_special_tokens=False)["input_ids"]
    tokens = [int(t) for t in rng.integers(0, SIZE, 12)]
    tokens += [*split, *tokens[:2], *end, 10]
    state, character, found = 0, 0, False
    for place, token in enumerate(tokens):
        state, character = int(tables.end[state, token]), int(tables.character[character, token])
        text = vocabulary.text(tokens[: place + 1], special=True)
        found = vocabulary.end_text in text
        assert (state == len(tables.end) - 1) == found
        assert (character != 0) == text.endswith("\ufffd")
    assert found


class Engine:
    """Requests with given logits, some of them in the batch at each step, in any order."""

    def __init__(self, slots: Slots, seed: int) -> None:
        self.slots = slots
        self.rng = np.random.default_rng(seed)

    def run(self, scripts: list[torch.Tensor], n_slots: int) -> list[list[int]]:
        """The greedy decodes; a request waits until one of the slots is free."""
        tokens: list[list[int]] = [[] for _ in scripts]
        prompts = self.rng.integers(2, 6, len(scripts))
        waiting, busy = list(range(len(scripts))), dict[int, int]()
        while waiting or busy:
            free = [slot for slot in range(n_slots) if slot not in busy]
            started = []
            while free and waiting and self.rng.random() < 0.7:
                slot = free.pop(int(self.rng.integers(len(free))))
                busy[slot] = waiting.pop(0)
                started.append(slot)
            if started:
                self.slots.begin(started)
                self._show_part_of_a_prompt(started[0], int(prompts[busy[started[0]]]))
            running = [slot for slot in busy if self.rng.random() < 0.8]
            self.rng.shuffle(running)
            if not running:
                continue
            mine = [busy[slot] for slot in running]
            logits = torch.stack([scripts[i][len(tokens[i])] for i in mine])
            self.slots.step(
                Rows(
                    logits=logits,
                    slots=torch.tensor(running),
                    tokens=torch.tensor([tokens[i][-1] if tokens[i] else 1 for i in mine]),
                    lengths=torch.tensor([prompts[i] + len(tokens[i]) for i in mine]),
                    prompts=torch.tensor(prompts[mine]),
                    filled=torch.tensor(prompts[mine]),
                )
            )
            for slot, i, row in zip(running, mine, logits, strict=True):
                tokens[i].append(int(row.argmax()))
                if len(tokens[i]) == len(scripts[i]):
                    del busy[slot]
        return tokens

    def _show_part_of_a_prompt(self, slot: int, prompt: int) -> None:
        logits = rows(1, seed=slot, fond_of=EOS)
        before = logits.clone()
        one = torch.tensor([prompt])
        self.slots.step(Rows(logits, torch.tensor([slot]), one * 0, one - 1, one, one))
        assert torch.equal(logits, before)


def test_a_frozen_rule_with_a_memory_of_its_own_is_refused_in_a_line_that_says_what_to_do() -> None:
    rule: Any = random_policy(("thinking_tokens", "entropy_mean.surplus@35e-2"))
    core = bind(
        rule, tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE, eos_ids=[EOS], profile="embedded"
    )
    with pytest.raises(UserError, match=r"does not follow entropy_mean.*V2_MODEL_RUNNER=0"):
        Slots(core, 1, 1000, CPU)


@given(
    seed=st.integers(0, 10**6),
    profile=st.sampled_from(["embedded", "think", "plain"]),
    n_slots=st.integers(1, 4),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_slots_force_what_requests_force(seed: int, profile: str, n_slots: int) -> None:
    rng = np.random.default_rng(seed)
    plan = plan_of(seed % 7, profile)
    scripts = [
        rows(
            int(rng.integers(45, 60)),
            seed + i,
            fond_of=(None, EOS, END)[int(rng.integers(3))],
            at=int(rng.integers(40)),
        )
        for i in range(6)
    ]
    slots = Slots(plan, n_slots, 1000, CPU)
    said = Engine(slots, seed).run(scripts, n_slots)
    assert said == [by_request(Request(plan), plan, script) for script in scripts]
    assert int(slots.failures) == 0


def one_row(slots: Slots, logits: torch.Tensor, length: int, **rest: int) -> torch.Tensor:
    """Show slot 0 a row; returns it as it is afterwards."""
    out = logits[None].clone()
    slots.step(
        Rows(
            logits=out,
            slots=torch.tensor([0]),
            tokens=torch.tensor([rest.get("token", 5)]),
            lengths=torch.tensor([length]),
            prompts=torch.tensor([3]),
            filled=torch.tensor([rest.get("filled", 3)]),
        )
    )
    return out[0]


@pytest.mark.parametrize(
    ("lengths", "filled", "context"), [((7,), 7, 1000), ((3, 6), 3, 1000), ((3,), 3, 20)]
)
def test_what_was_missed_or_has_no_room_is_left_alone_and_counted(
    lengths: tuple[int, ...], filled: int, context: int
) -> None:
    slots = Slots(plan_of(), 2, context, CPU)
    slots.begin([0])
    logits = rows(1, 0, fond_of=EOS)[0]
    for length in lengths:
        out = one_row(slots, logits, length, filled=filled)
    assert torch.equal(out, logits)
    assert int(slots.failures) == 1


def test_a_token_that_another_ruled_out_is_not_forced() -> None:
    slots = Slots(plan_of(), 2, 1000, CPU)
    slots.begin([0])
    logits = rows(1, 0, fond_of=EOS)[0]
    logits[END] = -torch.inf
    assert torch.equal(one_row(slots, logits, 3), logits)
    assert int(slots.failures) == 1


def test_a_loop_is_closed_where_the_request_closes_it() -> None:
    core = bind(
        random_policy(threshold=1.0), tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE,
        eos_ids=[EOS], profile="embedded", stride=7, max_thinking_tokens=1500,
    )  # fmt: skip
    scripts = []
    for period in (1, 7, 100):
        logits = rows(900, period)
        logits[:, [EOS, END]] = -50
        for place in range(150, 900):
            logits[place] = logits[150 + (place - 150) % period]
        scripts.append(logits)
    said = Engine(Slots(core, 2, 3000, CPU), 1).run(scripts, 2)
    for script, ids in zip(scripts, said, strict=True):
        request = Request(core)
        assert ids == by_request(request, core, script)
        assert request.ending.reason == "loop"


@given(seed=st.integers(0, 10**6), n=st.integers(1, 3))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_repetition_is_the_plain_comparison_of_every_period(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    twin, where = Repetitions(4, CPU), rng.permutation(4)[:n]
    slots = torch.from_numpy(where)
    written: list[list[int]] = [[] for _ in range(n)]
    words = [rng.integers(0, 3, int(rng.integers(1, 40))).tolist() for _ in range(n)]
    found = 0
    for step in range(700):
        if step == 60:  # another request in the first slot
            twin.forget(slots[:1])
            written[0] = []
        mask = rng.random(n) < 0.9
        tokens = [
            int(rng.integers(3)) if len(own) < 50 else word[len(own) % len(word)]
            for own, word in zip(written, words, strict=True)
        ]
        stands = twin.push(slots, torch.tensor(tokens), torch.from_numpy(mask)).tolist()
        for place in np.flatnonzero(mask).tolist():
            written[place].append(tokens[place])
        if step % 10:
            assert not any(np.array(stands) & ~mask)
            continue
        expected = [bool(m) and repeats(own) for m, own in zip(mask, written, strict=True)]
        assert stands == expected
        found += sum(expected)
    assert found


def repeats(tokens: list[int]) -> bool:
    """Whether the last tokens are those before them over and over, at any period."""
    there = np.array(tokens)
    for period in range(1, min(LONGEST, len(there) - 1) + 1):
        needed = tokens_needed(period)
        tail = there[-needed:]
        if len(tail) == needed and (tail[period:] == tail[:-period]).all():
            return True
    return False


def test_a_slot_that_was_ended_is_left_alone() -> None:
    slots = Slots(plan_of(), 2, 1000, CPU)
    logits = rows(1, 0, fond_of=EOS)[0]
    slots.begin([0])
    assert not torch.equal(one_row(slots, logits, 3), logits)
    slots.end([0])
    assert torch.equal(one_row(slots, logits, 4), logits)


def test_signals_that_are_no_numbers_switch_the_policy_off() -> None:
    plan = plan_of()
    logits = rows(60, 3, fond_of=END, at=30)
    logits[:30, [EOS, END]] = -50
    logits[2, 12:] = -torch.inf  # fewer tokens than the signals ask for
    request = Request(plan)
    expected = by_request(request, plan, logits)
    slots = Slots(plan, 1, 1000, CPU)
    assert Engine(slots, 0).run([logits], 1) == [expected]
    assert request.ending.reason == "policy_failed"
    assert int(slots.failures) == 1


def test_a_policy_that_sees_trial_answers_is_refused() -> None:
    turns: Any = random_policy(feature_names(SIGNALS, "turns"), preset="turns")
    with pytest.raises(UserError, match="preset free"):
        bind(
            turns,
            tiny_tokenizer(SIZE),
            VLLM,
            vocabulary_size=SIZE,
            eos_ids=[EOS],
            profile="embedded",
        )


@pytest.mark.parametrize(
    "prompt", [[1, 3], [1, 7], [1, 3, 9, END], [1, 3, 9, END, EOS, 8], [3, 9, END, 5, 3, 8]]
)
@pytest.mark.parametrize("opens_at", [None, 0, 1])
def test_thinking_that_is_closed_or_not_yet_open_is_known(
    prompt: list[int], opens_at: int | None
) -> None:
    plan = plan_of(profile="think")
    tokenizer = plan.vocabulary.tokenizer
    blank = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    logits = rows(60, 2)
    logits[:, EOS] = -50
    if opens_at is not None:
        logits[0, blank] = 50
        logits[opens_at, 3] = logits[opens_at + 1, blank] = 60
    slots = Slots(plan, 1, 1000, CPU)
    ids = torch.tensor([[*prompt, *[0] * 10]])
    slots.begin([0], ids=ids, lengths=torch.tensor([len(prompt)]))
    tokens: list[int] = []
    for step, row in enumerate(logits):
        out = row[None].clone()
        n = torch.tensor([len(prompt)])
        newest = torch.tensor([tokens[-1] if tokens else prompt[-1]])
        slots.step(Rows(out, torch.tensor([0]), newest, n + step, n, n))
        tokens.append(int(out.argmax()))
    assert tokens == by_request(Request(plan, prompt=prompt), plan, logits)
    assert int(slots.failures) == 0
