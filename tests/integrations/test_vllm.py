"""The vLLM adapter: the same decodes as ``Request``, and no request that can hurt the engine."""

from __future__ import annotations

import json
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_files import plan_file
from tiny_model import tiny_tokenizer

from rlbudget.decoding.core import VLLM, Core, bind
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import (
    PREFIX,
    check_room,
    settings_for,
    settings_of,
    wish_of,
    xargs_of,
)
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


class V1:
    """vLLM's V1 runner around the batch interface: slots that are filled, freed and moved."""

    def __init__(self, slots: Any, seed: int = 0) -> None:
        self.slots, self.rng = slots, np.random.default_rng(seed)
        self.batch: list[int] = []  # the request in each slot
        self.tokens: dict[int, list[int]] = {}

    def run(
        self, scripts: dict[int, torch.Tensor], params: dict[int, Params], *, prompt: Any = PROMPT,
        aside: float = 0.0, chunks: float = 0.0, late: bool = False,
    ) -> dict[int, list[int]]:  # fmt: skip
        """Greedy tokens of all requests; ``aside`` and ``chunks`` are how often one is set aside,
        or shown another row before its first token; ``late`` hides the newest token of those that
        are set aside, as asynchronous scheduling does."""  # fmt: skip
        self.tokens = {i: [] for i in scripts}
        waiting = list(scripts)
        while waiting or self.batch:
            self._change(scripts, params, waiting, prompt, aside, late)
            if not self.batch:
                continue
            if self.rng.random() < chunks:
                other = rows(len(self.batch), int(self.rng.integers(1000)), fond_of=EOS)
                self.slots.step(other)
            logits = torch.stack([scripts[i][len(self.tokens[i])] for i in self.batch])
            self.slots.step(logits)
            for i, row in zip(self.batch, logits, strict=True):
                self.tokens[i].append(int(row.argmax()))
        self.slots.update(fake_vllm.update())
        return self.tokens

    def _change(
        self, scripts: Any, params: Any, waiting: list[int], prompt: Any, aside: float, late: bool
    ) -> None:
        before = list(self.batch)
        removed, kept = [], []
        for slot, i in enumerate(before):
            if len(self.tokens[i]) == len(scripts[i]):
                removed.append(slot)
            elif self.rng.random() < aside:
                removed.append(slot)
                waiting.append(i)
                if late:
                    known, self.tokens[i] = self.tokens[i], list(self.tokens[i])
                    known[-1] = -1
            else:
                kept.append(slot)
        added, moved, removed = [], [], sorted(removed, reverse=True)
        self.rng.shuffle(waiting)
        size = len(before)
        free = [] if self.rng.random() < 0.3 else waiting[: int(self.rng.integers(0, 3))]
        gone = list(removed)
        for i in [f for f in free if f not in [before[slot] for slot in gone]]:
            waiting.remove(i)
            slot = gone.pop() if gone else size
            removed = [one for one in removed if one != slot]
            size = max(size, slot + 1)
            self.batch[slot:] = [i, *self.batch[slot + 1 :]]
            added.append((slot, params[i], [prompt[0], 10 + i, *prompt[1:]], self.tokens[i]))
        holes = set(gone)
        for hole in sorted(gone):  # the last ones fill the holes
            while size - 1 in holes:
                size -= 1
            holes.discard(hole)
            if hole < size:
                removed.remove(hole)  # vLLM names no slot as emptied that is filled again
                moved.append((size - 1, hole, fake_vllm.Move.UNIDIRECTIONAL))
                self.batch[hole] = self.batch[size - 1]
                size -= 1
        del self.batch[size:]
        if len(self.batch) > 1 and self.rng.random() < 0.3:
            a, b = 0, len(self.batch) - 1
            self.batch[a], self.batch[b] = self.batch[b], self.batch[a]
            moved.append((a, b, fake_vllm.Move.SWAP))
        self.slots.update(fake_vllm.update(added=added, removed=removed, moved=moved))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """V1's slots around a core; its plan is the one that requests name."""

    def make(core: Core, *, context: int = 2000, most: int = 8) -> Any:
        settings = settings_for({"default": core.plan}, core.profile.name)
        monkeypatch.setattr(vllm, "settings_of", lambda: settings)
        return vllm.Slots({"default": core}, context, most)

    return make


def by_v1(slots: Any, logits: torch.Tensor, most: int | None = 1000, **rest: Any) -> list[int]:
    """The greedy decode of one request."""
    return V1(slots).run({0: logits}, {0: Params(most)}, **rest)[0]


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


@given(
    seed=st.integers(0, 10**6),
    profile=st.sampled_from(["embedded", "think", "plain"]),
    aside=st.sampled_from([0.0, 0.2]),
    late=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_v1_decodes_every_row_as_the_request_does(
    serve: Any, seed: int, profile: str, aside: float, late: bool
) -> None:
    plan, rng = plan_of(seed % 7, profile), np.random.default_rng(seed)
    scripts = {
        i: rows(int(rng.integers(30, 60)), seed + i, at=int(rng.integers(40)),
                fond_of=(None, EOS, END)[int(rng.integers(3))])
        for i in range(6)
    }  # fmt: skip
    shared = Params(1000)
    said = V1(serve(plan), seed).run(
        scripts, dict.fromkeys(scripts, shared), aside=aside, late=late
    )
    expected = {
        i: by_request(Request(plan, max_new_tokens=1000), plan, script)
        for i, script in scripts.items()
    }
    assert said == expected
    assert plan.failures.count == 0


def test_parts_of_a_long_prompt_show_rows_that_count_for_nothing(serve: Any) -> None:
    for seed in range(6):
        plan, logits = plan_of(seed), rows(50, seed, fond_of=EOS, at=20)
        expected = by_request(Request(plan, max_new_tokens=1000), plan, logits)
        assert by_v1(serve(plan), logits, chunks=0.5) == expected


def test_the_two_ways_differ_where_the_row_is_never_shown() -> None:
    """The laws above hold because exits happen, not because nothing does."""
    outcomes = set()
    for seed in range(12):
        plan = plan_of(seed % 7)
        request = Request(plan, max_new_tokens=1000)
        by_request(request, plan, rows(60, seed, fond_of=(None, EOS, END)[seed % 3], at=seed))
        outcomes.add(request.ending.reason)
    assert outcomes >= {"policy", "natural"}


def test_an_answer_finds_room_in_max_tokens_and_in_the_context(serve: Any) -> None:
    never = random_policy(
        threshold=1.0,
        trained={"traces": {"recorded": {"profile": "embedded", "stride": 4, "max_tokens": 400}}},
    )
    plan = bind(never, tiny_tokenizer(SIZE), VLLM, vocabulary_size=SIZE, eos_ids=[EOS])
    for max_tokens, context in ((50, 1000), (None, 53), (900, 53)):
        tokens = by_v1(serve(plan, context=context), rows(50, 0), max_tokens)
        assert tokens.index(END) == 50 - plan.reserve


def test_a_request_without_room_is_left_alone_and_counted(serve: Any) -> None:
    plan, logits = plan_of(), rows(30, 1)
    assert by_v1(serve(plan, context=10), logits, None) == logits.argmax(dim=1).tolist()
    assert plan.failures.count == 1


def test_a_policy_that_breaks_down_costs_no_answer(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
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
        logits = rows(40, seed, fond_of=END, at=30)
        logits[:30, [EOS, END]] = -20
        assert by_v1(serve(plan), logits)[30] == END
    assert plan.failures.count == 3
    assert len([r for r in caplog.records if "out of order" in r.getMessage()]) == 1


def test_a_request_whose_tokens_were_missed_is_left_alone(serve: Any) -> None:
    plan, logits, output = plan_of(), rows(2, 0), list[int]()
    slots = serve(plan)
    slots.update(fake_vllm.update(added=[(0, Params(), PROMPT, output)]))
    slots.step(logits[:1].clone())
    output.extend([7, 8, 9])
    seen = logits[1:].clone()
    slots.step(seen)
    assert torch.equal(seen, logits[1:])
    slots.update(fake_vllm.update(added=[(1, Params(), PROMPT, [7, 8])]))
    assert plan.failures.count == 2


def test_what_a_request_calls_an_end_does_not_end_its_thinking(serve: Any) -> None:
    plan, logits = plan_of(), rows(20, 0)
    logits[:, [EOS, END]] = -50
    logits[3, 77] = 60
    tokens = V1(serve(plan)).run({0: logits}, {0: Params(1000, stop_token_ids=[77])})[0]
    assert 77 not in tokens[:3]
    assert tokens[3] == plan.vocabulary.exit_ids[0]


def test_closed_thinking_is_left_alone_and_unopened_thinking_waited_for(serve: Any) -> None:
    plan, logits = plan_of(profile="think"), rows(60, 2)
    logits[:, EOS] = -50
    assert by_v1(serve(plan), logits, prompt=[1, 3, 5, END]) == logits.argmax(dim=1).tolist()
    logits[0, 3] = 60
    said = by_v1(serve(plan), logits, prompt=[1, 7])
    assert said == by_request(Request(plan, prompt=[1, 7], max_new_tokens=1000), plan, logits)
    assert said != logits.argmax(dim=1).tolist()


def rules_plan(folder: Path, policy: Path, **more: Any) -> Path:
    """A plan with rules, a log and whatever else."""
    (folder / "rules.toml").write_text(
        '[[rule]]\nname = "gold"\nmetadata = { tier = 2 }\nthen = "full"\n'
        '[[rule]]\nname = "sums"\nquestion = "7 times"\nmax_tokens = 4\n'
        '[[rule]]\nname = "all"\nmin_tokens = 8\n'
    )
    return plan_file(folder / "plan.toml", policy=policy, rules={"file": folder / "rules.toml"},
                     **more)  # fmt: skip


def test_a_plan_with_rules_and_a_log_serves_requests_by_what_they_say(
    model: ModelConfig, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv(
        "RLBUDGET_PLAN", str(rules_plan(tmp_path, policy_folder, audit={"log": log}))
    )
    monkeypatch.delenv("RLBUDGET_POLICY", raising=False)
    processor = vllm.BudgetProcessor(fake_vllm.config(model), torch.device("cpu"), False)
    logits = rows(60, 5)
    logits[:, [EOS, END]] = -50
    asked: dict[int, dict[str, Any]] = {
        0: {"rlbudget_question": "What is 7 times 8?", "rlbudget_request_id": "sum"},
        1: {"rlbudget_metadata": '{"tier": 2}', "rlbudget_request_id": "gold"},
        2: {"rlbudget_thinking_budget": 6, "rlbudget_request_id": "budget"},
        3: {"rlbudget_off": True, "rlbudget_request_id": "off"},
        4: {"rlbudget_effort": "none", "rlbudget_request_id": "none"},
    }
    params = {i: Params(59, said) for i, said in asked.items()}
    for one in params.values():
        processor.validate_params(one)
    slots = processor._v1
    slots._most = 0  # what is set aside is given up at once
    tokens = V1(slots).run(dict.fromkeys(asked, logits), params)
    ends = {i: ids.index(END) if END in ids else None for i, ids in tokens.items()}
    assert ends[0] == 8  # no stop before it
    assert ends[1] == 59 - slots._cores["default"].reserve
    assert ends[2] == 6
    assert ends[3] is None
    assert ends[4] == 0
    lines = [
        json.loads(line) for path in log.rglob("*.jsonl") for line in path.read_text().splitlines()
    ]
    told = {line["request_id"]: line for line in lines if "request_id" in line}
    assert sorted(told) == ["budget", "gold", "none", "off", "sum"]


def test_v2_refuses_a_plan_that_is_more_than_a_policy(
    model: ModelConfig, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLBUDGET_PLAN", str(rules_plan(tmp_path, policy_folder)))
    monkeypatch.delenv("RLBUDGET_POLICY", raising=False)
    with pytest.raises(UserError, match=r"serves one frozen policy: leave combine.* out of"):
        vllm.BudgetProcessor(fake_vllm.config(model), fake_vllm.request_states(2, 1024, SIZE))


def test_the_children_of_one_request_have_a_budget_each(processor: Any) -> None:
    shared = Params(200)
    alone, together = (
        [processor.new_req_logits_processor(shared if same else Params(200)) for _ in range(3)]
        for same in (False, True)
    )
    said = []
    for calls in (alone, together):
        tokens: list[list[int]] = [[], [], []]
        for step in range(24):
            for child, call in enumerate(calls):
                row = rows(1, 100 * child + step)[0]
                row[[END, EOS]] -= 40
                tokens[child].append(int(call(PROMPT, list(tokens[child]), row).argmax()))
        said.append([ids.index(END) for ids in tokens])
    assert said[0] == said[1]
    assert len(set(said[0])) > 1


@pytest.fixture
def processor(model: ModelConfig, policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RLBUDGET_POLICY", f"main={policy_folder},other={policy_folder}")
    return vllm.BudgetProcessor(fake_vllm.config(model, seqs=2), torch.device("cpu"), False)


def test_v1_takes_what_it_is_told(processor: Any) -> None:
    assert not processor.is_argmax_invariant()
    processor.update_state(None)
    added = [(i, Params(200, {"rlbudget_off": i == 1}), PROMPT, []) for i in range(2)]
    processor.update_state(fake_vllm.update(added=added))
    logits = rows(2, 0)
    before = logits.clone()
    assert processor.apply(logits) is logits
    assert torch.isinf(logits[0, EOS])
    assert torch.equal(logits[1], before[1])


@pytest.mark.parametrize(
    ("max_tokens", "extra", "said"),
    [
        (200, {"rlbudget_token_price": 7.0}, "serves prices from 1e-05 to 0.01"),
        (200, {"rlbudget_token_price": float("nan")}, "token price must be at least 0, not nan"),
        (200, {"rlbudget_token_price": 1e-3, "rlbudget_effort": "low"}, "say one of"),
        (200, {"rlbudget_effort": "huge"}, "it is one of none, minimal"),
        (200, {"rlbudget_answer_worth": 1.0}, "go together"),
        (200, {"rlbudget_effort": 3}, "rlbudget_effort must be a text, not 3"),
        (200, {"rlbudget_max_em_loss": "x"}, "must be a number, not 'x'"),
        (200, {"rlbudget_thinking_budget": 0}, "must be a whole number of tokens, at least 1"),
        (200, {"rlbudget_thinking_budget": 2.5}, "must be a whole number of tokens"),
        (200, {"rlbudget_metadata": "[1]"}, "must be a JSON object as text"),
        (200, {"rlbudget_metadata": "{"}, "must be a JSON object as text"),
        (200, {"rlbudget_question": "\ud800"}, "rlbudget_question must be a text"),
        (200, {"rlbudget_request_id": " "}, "rlbudget_request_id must be a text"),
        (200, {"rlbudget_token_price": "low"}, "must be a number, not 'low'"),
        (200, {"rlbudget_token_price": True}, "must be a number, not True"),
        (200, {"rlbudget_policy": "/etc"}, "no policy '/etc' here; there are: main, other"),
        (200, {"rlbudget_policy": 3}, "rlbudget_policy must be a text, not 3"),
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
        Params(200, {"rlbudget_thinking_budget": 30, "rlbudget_metadata": '{"tier": 2}'}),
        Params(200, {"rlbudget_effort": "none"}),
        Params(200, {"rlbudget_answer_worth": 0.01, "rlbudget_price_per_million": 2}),
        Params(200, {"rlbudget_question": "What\nnow?", "rlbudget_task": "sums"}),
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
        check_room(wish_of(xargs_of(params), known, PREFIX), known, params.max_tokens)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "set RLBUDGET_POLICY to a policy folder"),
        ({"RLBUDGET_PLAN": "/nowhere/plan.toml"}, "cannot read the plan"),
        ({"RLBUDGET_PLAN": "FOLDER/policy.json", "RLBUDGET_POLICY": "FOLDER"}, "policy.json"),
        ({"RLBUDGET_POLICY": "/nowhere/p"}, "no such folder"),
        ({"RLBUDGET_POLICY": "a=FOLDER,a=FOLDER"}, "a name of its own"),
        ({"RLBUDGET_POLICY": "a="}, "is not name=path"),
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
    states.all_token_ids.gpu[:, : len(PROMPT)] = torch.tensor(PROMPT)
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
