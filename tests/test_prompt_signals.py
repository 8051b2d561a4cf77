"""What the model makes of a prompt: the numbers, their way into traces, and live as in a replay."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_model import save_tiny_model, tiny_questions, tiny_task, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

import rlbudget.envs  # noqa: F401 - registers the environments
from rlbudget.context import CONTEXT_SIGNALS, PROMPT_SIGNALS, prompt_signals_of
from rlbudget.decode import decode
from rlbudget.errors import UserError
from rlbudget.freeze import policy_of_run
from rlbudget.frozen import Decision
from rlbudget.models import load_model, sequences
from rlbudget.models.profiles import PROFILES
from rlbudget.models.prompts import own_tokens
from rlbudget.models.stream import stream
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.observation import features_of, observe
from rlbudget.record import record
from rlbudget.store import TraceWriter, load_table, load_traces
from rlbudget.tasks.load import load_task
from rlbudget.training import train_on

sys.path.append(str(Path(__file__).parent.parent / "runs"))
from add_prompt_signals import add_prompt_signals

torch.set_num_threads(1)

CAP = 48
PRICE = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    return load_model(str(folder), profile="embedded")


@pytest.fixture(scope="module")
def sliding(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose cache forgets what is six tokens back."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(model.tokenizer), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=6,
        eos_token_id=2, bos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("sliding")
    MistralForCausalLM(config).save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    return out


def read_alone(model: TransformersModel, question: str) -> list[float]:
    """The signals of one question from one forward pass without a cache."""
    ids = model.prompt_ids(question)
    places = own_tokens(ids, model.prompt_ids(""))
    with torch.no_grad():
        logprobs = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    asked = [place for place in places if place > 0]
    entropies = [-(logprobs[p - 1].exp() * logprobs[p - 1]).sum().item() for p in asked]
    given = [logprobs[p - 1, ids[p]].item() for p in asked]
    return [len(places), np.mean(entropies), np.mean(given)]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_questions_own_tokens_spell_it(profile: str) -> None:
    tokenizer = tiny_tokenizer()
    prompt = PROFILES[profile].prompt
    for question in ("What is 7 + 12?", "Name three.\nThen one.", "?"):
        ids = prompt(question, tokenizer)
        places = own_tokens(ids, prompt("", tokenizer))
        own = tokenizer.decode([ids[place] for place in places])
        # A token may straddle the border of the profile's text.
        assert own.strip() in (question, question[:-1].strip(), question[1:].strip())
    assert len(own_tokens(prompt("", tokenizer), prompt("", tokenizer))) == 0


def test_what_a_question_shares_with_the_profile_is_counted_once() -> None:
    empty = [1, 9, 5]
    for question in ([5], [9], [5, 5], [9, 5], [4], [4, 9, 5]):
        prompt = [1, 9, *question, 5]
        places = own_tokens(prompt, empty)
        assert len(places) == len(question)
        assert [*prompt[: places.start], *prompt[places.stop :]] == empty


@pytest.mark.parametrize("at_once", [1, 2**12, 2**26])
@pytest.mark.parametrize("forgets", [False, True])
def test_reading_together_in_any_pieces_gives_what_each_gives_alone(
    folder: Path, sliding: Path, forgets: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_LOGITS_AT_ONCE", at_once)
    model = load_model(str(sliding if forgets else folder), profile="embedded")
    # More rows than a group has, and the longest in the last one.
    questions = [*tiny_questions(23), "How many legs do 2 cows and 17 hens have together? " * 3]
    alone = [read_alone(model, question) for question in questions]
    np.testing.assert_allclose(model.prompt_signals(questions), alone, rtol=1e-4, atol=1e-4)


def test_a_prompt_without_a_question_says_nothing(model: TransformersModel) -> None:
    assert model.prompt_signals([""]).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("at_once", [2**11, 2**26])
def test_measuring_changes_no_decode_and_stays_with_its_row(
    model: TransformersModel, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_LOGITS_AT_ONCE", at_once)
    n = 30
    questions = tiny_questions(n)
    alone = [read_alone(model, question) for question in questions]
    finals: tuple[dict[int, object], dict[int, object]] = ({}, {})
    checked = 0
    for measured in (False, True):
        for batch in stream(
            model, questions, range(n), batch_size=7, max_tokens=CAP, prompt_signals=measured
        ):
            finals[measured].update({row: batch.final.pop(row) for row in list(batch.final)})
            rows = batch.at_checkpoint
            found = batch.signals(rows)
            assert (set(PROMPT_SIGNALS) <= set(found)) == batch.measures_prompts == measured
            if measured and len(rows):
                seen = np.stack([found[name] for name in PROMPT_SIGNALS], axis=1)
                wanted = [alone[row] for row in rows.tolist()]
                np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-4)
                checked += len(rows)
    assert checked > n
    # A draw may lie just on the border, where the last bits decide.
    assert sum(finals[0][row] == finals[1][row] for row in range(n)) >= n - 1


def test_context_features_hold_them_where_the_traces_do(
    model: TransformersModel, tmp_path: Path
) -> None:
    record(model, tiny_task(8), tmp_path / "new", max_tokens=CAP, probe_tokens=0)
    plain = without_prompts(tmp_path / "new", tmp_path / "old")
    new, old = load_table(tmp_path / "new", context=True), load_table(plain, context=True)
    assert prompt_signals_of(features_of(new, "free", context=True)) == list(PROMPT_SIGNALS)
    assert "prompt_tokens.log" in features_of(new, "free", context=True)
    assert features_of(new, "free") == features_of(old, "free")
    older = features_of(old, "free", context=True)
    assert not prompt_signals_of(older)
    assert set(CONTEXT_SIGNALS) <= set(older)
    np.testing.assert_array_equal(observe(new, older), observe(old, older))


def without_prompts(traces: Path, out: Path) -> Path:
    """The folder as it was recorded before there were such signals."""
    with TraceWriter(out) as writer:
        for trace in load_traces(traces):
            points = [
                replace(p, signals={k: v for k, v in p.signals.items() if k not in PROMPT_SIGNALS})
                for p in trace.checkpoints
            ]
            writer.add(replace(trace, checkpoints=tuple(points)))
    return out


def test_an_older_recording_goes_on_without_them(model: TransformersModel, tmp_path: Path) -> None:
    settings = {"max_tokens": CAP, "probe_tokens": 0}
    record(model, tiny_task(8), tmp_path / "new", **settings)  # type: ignore[arg-type]
    old = without_prompts(tmp_path / "new", tmp_path / "old")
    for out, held in ((tmp_path / "new", True), (old, False)):
        record(model, tiny_task(16), out, resume=True, **settings)  # type: ignore[arg-type]
        points = [point for trace in load_traces(out) for point in trace.checkpoints]
        assert len({trace.trace_id for trace in load_traces(out)}) == 16
        assert all((set(PROMPT_SIGNALS) <= set(point.signals)) == held for point in points)


def test_the_script_adds_what_a_recording_would_hold(
    model: TransformersModel, tmp_path: Path
) -> None:
    record(model, tiny_task(20), tmp_path / "new", max_tokens=CAP, probe_tokens=3)
    old = without_prompts(tmp_path / "new", tmp_path / "old")
    before = load_traces(old)
    assert add_prompt_signals(model, old, tmp_path / "added") == 20
    assert load_traces(old) == before
    added, recorded = load_table(tmp_path / "added"), load_table(tmp_path / "new")
    assert set(added.signals) == set(recorded.signals)
    for name in recorded.signals:
        exact = name not in PROMPT_SIGNALS
        np.testing.assert_allclose(
            added.signals[name], recorded.signals[name], rtol=0 if exact else 1e-5
        )
    kept = load_traces(tmp_path / "added")
    assert [replace(trace, checkpoints=()) for trace in kept] == [
        replace(trace, checkpoints=()) for trace in before
    ]
    assert without_prompts(tmp_path / "added", tmp_path / "again").is_dir()
    assert load_traces(tmp_path / "again") == before
    with pytest.raises(UserError, match="is there already"):
        add_prompt_signals(model, old, tmp_path / "added")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["added", "again", "new", "old"]


@dataclass
class Watching:
    """A policy that keeps what it is shown and never stops."""

    features: tuple[str, ...]
    price_range: tuple[float, float] = (1e-5, 1.0)
    seen: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def __call__(self, observation: npt.NDArray[np.float32], *, token_price: float) -> Decision:
        self.seen.append(observation)
        return Decision(stop=False, stop_probability=0.25)


def test_a_live_decode_of_the_embedded_model_sees_what_its_trace_holds(tmp_path: Path) -> None:
    model = load_model("embedded")
    record(model, load_task("embedded", n=6, seed=3), tmp_path, probe_tokens=0, max_tokens=48)
    table = load_table(tmp_path, context=True)
    features = features_of(table, "free", context=True)
    columns = [features.index(name) for name in ("prompt_tokens.log", *PROMPT_SIGNALS[1:])]
    recorded = observe(table, features)
    compared = 0
    for place, trace in enumerate(load_traces(tmp_path)):
        policy = Watching(features)
        live = decode(
            model, trace.question, policy, token_price=PRICE, seed=trace.meta["row_seed"],
            max_tokens=48,
        )  # fmt: skip
        assert live.message is None
        wanted = recorded[table.offsets[place] : table.offsets[place + 1]]
        seen = np.array(policy.seen).reshape(-1, len(features))
        # A draw may lie just on the border, where the last bits decide; then the decodes part.
        n = min(len(seen), len(wanted))
        np.testing.assert_allclose(seen[:n, columns], wanted[:n, columns], rtol=1e-4, atol=1e-4)
        if live.answer == trace.final.answer and len(seen) == len(wanted):
            np.testing.assert_allclose(seen, wanted, rtol=1e-3, atol=1e-3)
            compared += 1
    assert compared >= 5
    told = recorded[:, columns]
    assert (told.std(axis=0) > 0).all()
    assert (told[:, 1] > 0).all()
    assert (told[:, 2] < 0).all()


def test_training_takes_them_with_the_context_but_not_for_servers_without_logits(
    model: TransformersModel, tmp_path: Path
) -> None:
    record(model, tiny_task(24), tmp_path / "traces", max_tokens=CAP, probe_tokens=0)
    found = {}
    for signals in ("all", "top"):
        run = tmp_path / signals
        train_on(tmp_path / "traces", run, signals=signals, context=True, total_timesteps=64)  # type: ignore[arg-type]
        found[signals] = policy_of_run(run).features
    assert prompt_signals_of(found["all"]) == list(PROMPT_SIGNALS)
    assert not prompt_signals_of(found["top"])
    assert set(CONTEXT_SIGNALS) <= set(found["all"]) & set(found["top"])


def test_the_live_environment_shows_them_where_they_are_asked_for(
    model: TransformersModel,
) -> None:
    task = tiny_task(4)
    env = gymnasium.make(
        "rlbudget/Decoding-v0", model=model, task=task, token_price=(1e-4, 1e-2), max_tokens=CAP,
        features=("thinking_tokens", *PROMPT_SIGNALS),
    )  # fmt: skip
    for index, question in enumerate(task.questions):
        seen, _ = env.reset(seed=0, options={"question": index})
        np.testing.assert_allclose(
            seen[1:4], read_alone(model, question.question), rtol=1e-4, atol=1e-4
        )
