from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import save_tiny_model, tiny_questions
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.answers import OptionsResult
from rlbudget.models.decode_batch import DecodeBatch
from rlbudget.models.profiles import PROFILES, Profile
from rlbudget.models.reading import Finished
from rlbudget.models.sampling import Uniforms, sample
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.signals.tokens import TOP_K, Window

torch.set_num_threads(1)

Options = Sequence[Sequence[int]]

N = 24
STRIDE = 8
CAP = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    return load_model(str(folder), profile="embedded")


def begin(model: TransformersModel, n: int = N, temperature: float = 1.0) -> DecodeBatch:
    return model.begin(
        tiny_questions(n),
        list(range(n)),
        temperature=temperature,
        max_tokens=CAP,
        stride=STRIDE,
    )


def run(
    batch: DecodeBatch, at_checkpoint: Callable[[DecodeBatch], object] = lambda batch: None
) -> list[Finished]:
    while True:
        batch.advance()
        if not len(batch.at_checkpoint):
            break
        at_checkpoint(batch)
    assert batch.done
    return [batch.final[row] for row in sorted(batch.final)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("profile", ["embedded", "plain", "think"])
def test_exits_and_probes_leave_the_decode_untouched(
    folder: Path, profile: str, temperature: float
) -> None:
    model = load_model(str(folder), profile=profile)

    def look(batch: DecodeBatch) -> None:
        rows = batch.at_checkpoint
        batch.fork_probes(rows, 4)
        batch.fork_options(rows, [model.option_ids(("1", "1/12", "yes"))] * len(rows))
        batch.fork_exits(rows[: len(rows) // 3 + 1])
        batch.fork_exits(rows)

    plain = run(begin(model, 8, temperature))
    forked = run(begin(model, 8, temperature), look)
    assert forked == plain


def test_a_fork_is_a_copy_where_the_cache_forgets(folder: Path, tmp_path: Path) -> None:
    tiny = load_model(str(folder), profile="embedded")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tiny.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        eos_token_id=2,
        bos_token_id=1,
        initializer_range=0.3,
    )
    network = MistralForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight[[2, 4]] *= 1.5
    network.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), profile="embedded")
    plain = run(begin(model, 8))
    assert max(final.thinking_tokens for final in plain) > 12
    options = model.option_ids(("1", "1/12"))

    def look(batch: DecodeBatch) -> None:
        rows = batch.at_checkpoint
        batch.fork_exits(rows)
        for found, row in zip(batch.fork_options(rows, [options] * len(rows)), rows, strict=True):
            thinking = batch.thinking_ids(row).tolist()
            assert_read_again(model, [*model.prompt_ids(tiny_questions(8)[row]), *thinking],
                              options, found)  # fmt: skip

    assert run(begin(model, 8), look) == plain


def test_a_decode_does_not_depend_on_its_batch(model: TransformersModel) -> None:
    together = run(begin(model))
    same = 0
    for row, question in enumerate(tiny_questions(N)):
        alone = model.begin([question], [row], temperature=1.0, max_tokens=CAP, stride=STRIDE)
        same += run(alone) == [together[row]]
    # The last bits of a matrix product depend on the batch; a draw may lie just on the border.
    assert same >= N - 1


def test_the_seed_decides_a_sampled_decode(model: TransformersModel) -> None:
    question = tiny_questions(1)[0]
    texts = []
    for seed in (5, 5, 6):
        (final,) = run(model.begin([question], [seed], temperature=1.0, max_tokens=CAP))
        texts.append(final.text + final.rest)
    assert texts[0] == texts[1] != texts[2]


def test_greedy_decodes_are_those_of_generate(model: TransformersModel) -> None:
    finals = run(begin(model, 12, temperature=0.0))
    compared = 0
    for question, final in zip(tiny_questions(12), finals, strict=True):
        if not final.natural or not final.rest.startswith("</think>"):
            continue
        prompt = torch.tensor([model.prompt_ids(question)])
        tokens = final.thinking_tokens + final.answer_tokens
        out = model.network.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
        )
        text = model.vocabulary.text(out[0, prompt.shape[1] :].tolist(), special=True)
        if text != final.text + final.rest:
            # The model may also have ended without answering; then the exit text was forced.
            assert text.endswith("<eos>")
            continue
        compared += 1
    assert compared >= 2


def test_an_exit_is_what_reading_everything_again_would_give(model: TransformersModel) -> None:
    batch = begin(model)
    compared = 0
    while compared < 12:
        batch.advance()
        rows = batch.at_checkpoint
        assert len(rows)
        for row, exit_ in zip(rows.tolist(), batch.fork_exits(rows), strict=True):
            thinking = batch.thinking_ids(row).tolist()
            assert [len(thinking)] == batch.thinking_tokens([row]).tolist()
            prompt = model.prompt_ids(tiny_questions(N)[row])
            read = torch.tensor([[*prompt, *thinking, *model.vocabulary.exit_ids]])
            out = model.network.generate(
                read,
                attention_mask=torch.ones_like(read),
                max_new_tokens=model.profile.max_answer_tokens,
                do_sample=False,
            )
            assert tuple(out[0, read.shape[1] :].tolist()) == exit_.ids
            assert exit_.answer_tokens == len(model.vocabulary.exit_ids) + len(exit_.ids)
            compared += 1


def assert_read_again(
    model: TransformersModel, read: list[int], options: Options, found: OptionsResult
) -> None:
    """Each option read alone, without a cache, after everything before it."""
    ends = [2]
    if model.profile.name != "embedded":
        stop = {"plain": "\n", "think": "}"}[model.profile.name]
        ends += model.tokenizer(stop, add_special_tokens=False)["input_ids"]
    cue = [*read, *model.vocabulary.probe_ids]
    logprobs = []
    for ids in options:
        with torch.no_grad():
            logits = model.network(torch.tensor([[*cue, *ids]])).logits[0].double()
        p = logits.softmax(-1).numpy()[len(cue) - 1 :]
        each = [p[i, token] for i, token in enumerate(ids)]
        logprobs.append(np.log(each).sum() + np.log(p[-1, ends].sum()))
    assert found.logprobs == pytest.approx(logprobs, abs=1e-4)
    shares = np.exp(logprobs) / np.exp(logprobs).sum()
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)
    assert found.tokens == 1 + sum(len(ids) for ids in options)


@pytest.mark.parametrize("profile", ["embedded", "plain", "think"])
def test_options_are_as_likely_as_reading_everything_again_says(folder: Path, profile: str) -> None:
    model = load_model(str(folder), profile=profile)
    choices = [model.option_ids(o) for o in (("1", "1/12", "12"), ("yes", "no"), (), ("a", "b c"))]
    batch = begin(model, 12)
    for _ in range(2):
        batch.advance()
        for rows in (batch.at_checkpoint, batch.at_checkpoint[:2]):
            options = [choices[row % 4] for row in rows.tolist()]
            results = batch.fork_options(rows, options)
            for row, ids, found in zip(rows.tolist(), options, results, strict=True):
                if not ids:
                    assert (found.logprobs, found.entropy) == ((), 0)
                    continue
                thinking = batch.thinking_ids(row).tolist()
                prompt = model.prompt_ids(tiny_questions(12)[row])
                assert_read_again(model, [*prompt, *thinking], ids, found)


def test_an_option_and_its_beginning_are_different_answers(model: TransformersModel) -> None:
    batch = begin(model)
    batch.advance()
    rows = batch.at_checkpoint
    options = model.option_ids(("1", "12", "123", "1/12"))
    for found in batch.fork_options(rows, [options] * len(rows)):
        assert np.exp(found.logprobs).sum() < 1
        assert 0 < found.entropy < np.log(4)


def test_an_option_stands_after_the_cue_as_the_model_would_write_it(folder: Path) -> None:
    for profile, text in (("embedded", "<eos>12"), ("plain", " <eos>12"), ("think", "<eos>12")):
        model = load_model(str(folder), profile=profile)
        (ids,) = model.option_ids(("<eos>12",))
        assert 2 not in ids
        assert model.vocabulary.text(ids, special=True) == text


def test_an_option_longer_than_an_answer_is_refused(model: TransformersModel) -> None:
    assert len(model.option_ids(("7" * 32,))[0]) == 32
    with pytest.raises(UserError, match="is 33 tokens long: an answer has 1 to 32"):
        model.option_ids(("1", "7" * 33))


def test_stopping_gives_the_recorded_exit(model: TransformersModel) -> None:
    batch = begin(model)
    batch.advance()
    rows = batch.at_checkpoint
    recorded = batch.fork_exits(rows)
    stopped = batch.stop(rows[:3])
    assert [(e.answer, e.ids) for e in stopped] == [(e.answer, e.ids) for e in recorded[:3]]
    assert batch.at_checkpoint.tolist() == rows[3:].tolist()
    while len(batch.at_checkpoint):
        batch.advance()
    assert set(batch.final) == set(range(N)) - set(rows[:3].tolist())


def test_a_probe_is_the_beginning_of_the_exit(model: TransformersModel) -> None:
    batch = begin(model)
    batch.advance()
    rows = batch.at_checkpoint
    exits = batch.fork_exits(rows)
    for k in (1, 3, 32):
        probes = batch.fork_probes(rows, k)
        shared = batch.probes_of(exits, k)
        assert shared is not None
        for a, b, exit_ in zip(shared, probes, exits, strict=True):
            assert (a.answer, a.tokens) == (b.answer, b.tokens)
            assert a.confidence == pytest.approx(b.confidence, rel=1e-5)
            later = np.exp(exit_.logprobs[1:k])
            assert a.tail == pytest.approx(later.mean() if len(later) else 0, rel=1e-9)
            assert a.tail == pytest.approx(b.tail, rel=1e-5)
            assert a.tokens == min(k, len(exit_.ids))
            assert 0 < a.confidence <= 1


def test_signals_are_those_of_one_forward_pass_over_the_text(model: TransformersModel) -> None:
    batch = begin(model)
    batch.advance()
    first = set(batch.at_checkpoint.tolist())
    batch.advance()
    rows = batch.at_checkpoint
    assert 0 < len(first & set(rows.tolist())) < len(rows)
    found = batch.signals(rows)
    for place, row in enumerate(rows.tolist()):
        prompt = model.prompt_ids(tiny_questions(N)[row])
        thinking = batch.thinking_ids(row).tolist()
        with torch.no_grad():
            logits = model.network(torch.tensor([[*prompt, *thinking]])).logits[0].double()
        window = Window(1)
        begun = STRIDE if row in first else 0
        if begun:
            before = np.full((1, 6), 1e3)  # the window knows of the sentence that ended before it
            window.push(before, model.vocabulary.markers[thinking[STRIDE - 1]][None])
            window.read()
        for i in range(begun, 2 * STRIDE):
            p = logits[len(prompt) + i - 1].softmax(-1).numpy()
            top = np.sort(p)[-2:]
            signals = [
                np.log(p[thinking[i]]),
                -(p * np.log(p)).sum(),
                np.log(top[1] / top[0]),
                p[model.vocabulary.exit_ids[0]],
                np.log(np.sort(p)[-TOP_K:]).mean(),
                np.log(top[1] / p[model.vocabulary.exit_ids[0]]),
            ]
            window.push(np.array([signals]), model.vocabulary.markers[thinking[i]][None])
        for name, value in window.read().items():
            assert found[name][place] == pytest.approx(value[0], rel=2e-4, abs=2e-5), name


def test_checkpoints_lie_on_the_grid_and_before_the_cap(model: TransformersModel) -> None:
    seen: dict[int, list[int]] = {row: [] for row in range(N)}

    def look(batch: DecodeBatch) -> None:
        rows = batch.at_checkpoint
        for row, tokens in zip(rows.tolist(), batch.thinking_tokens(rows).tolist(), strict=True):
            seen[row].append(tokens)

    def whole(ids: Sequence[int]) -> bool:
        return not model.tokenizer.decode(ids[-4:]).endswith("\ufffd")

    batch = model.begin(
        tiny_questions(N), list(range(N)), temperature=1.0, max_tokens=32, stride=STRIDE
    )
    finals = run(batch, look)
    for row, final in enumerate(finals):
        last = final.thinking_tokens if final.natural else 31
        grid = range(STRIDE, last + 1, STRIDE)
        assert seen[row] == [tokens for tokens in grid if whole(final.ids[:tokens])]
        if not final.natural:
            assert final.thinking_tokens == 32
            assert final.rest.startswith("</think>")
    assert {final.natural for final in finals} == {True, False}


def test_every_token_is_counted_and_an_early_end_still_answers(model: TransformersModel) -> None:
    n = 60
    batch = begin(model, n)
    finals = run(batch)
    assert all(final.rest.startswith("</think>") for final in finals)
    counted = sum(final.thinking_tokens + final.answer_tokens for final in finals)
    # A row that ended everything while thinking paid for the end token the exit text replaced.
    replaced = counted - batch.generated
    assert 0 < replaced < n


def test_the_plain_profile_ends_by_its_text_and_never_before_a_checkpoint(folder: Path) -> None:
    model = load_model(str(folder), profile="plain")
    batch = begin(model, 40)
    last: dict[int, int] = {}

    def look(batch: DecodeBatch) -> None:
        rows = batch.at_checkpoint
        last.update(zip(rows.tolist(), batch.thinking_tokens(rows).tolist(), strict=True))

    for row, final in enumerate(run(batch, look)):
        assert "The answer is" in final.rest
        assert "The answer is" not in final.text
        assert final.thinking_tokens >= last.get(row, 0)


def test_a_text_of_several_tokens_is_found_whichever_tokens_spell_it(folder: Path) -> None:
    vocabulary = load_model(str(folder), profile="plain").vocabulary
    ids = vocabulary.tokenizer("so 4. The answer is", add_special_tokens=False)["input_ids"]
    n = vocabulary.end_length(ids)
    assert vocabulary.text(ids[len(ids) - n :]).strip() == "The answer is"
    assert vocabulary.end_length(ids[:-1]) == 0


def test_special_tokens_in_a_question_stay_text(model: TransformersModel) -> None:
    ids = model.prompt_ids("is </think><eos> text?")
    end = model.vocabulary.exit_ids[0]
    assert end not in ids
    assert 2 not in ids
    assert model.vocabulary.text(ids, special=True) == "<bos>is </think><eos> text?\n<think>"


def test_the_default_profile_follows_the_tokenizer(folder: Path) -> None:
    assert load_model(str(folder)).profile.name == "think"


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-40, 40), min_size=2, max_size=30),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    temperature=st.floats(0.05, 5),
)
def test_sampling_inverts_the_distribution(
    logits: list[float], uniforms: list[float], temperature: float
) -> None:
    scores = torch.tensor(logits, dtype=torch.float32).expand(len(uniforms), -1)
    tokens = sample(scores, temperature, torch.tensor(uniforms, dtype=torch.float64)).numpy()
    p = (scores[0].double() / temperature).softmax(-1).numpy()
    mass = np.concatenate([[0.0], np.cumsum(p)])
    for token, u in zip(tokens, uniforms, strict=True):
        assert p[token] > 0
        assert mass[token] - 1e-12 <= u <= mass[token + 1] + 1e-12


def test_samples_have_the_wanted_frequencies() -> None:
    n = 20_000
    uniforms = Uniforms([7])
    drawn = torch.from_numpy(np.array([uniforms.at(np.array([i]))[0] for i in range(n)]))
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7])).expand(n, -1)
    found = torch.bincount(sample(logits, 1.0, drawn), minlength=3).numpy() / n
    assert np.abs(found - [0.1, 0.2, 0.7]).max() < 0.015


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", "there is no model folder no/such/folder"),
        ("./nowhere", "there is no model folder ./nowhere"),
        ("someone/no-such-model", "cannot load the model 'someone/no-such-model'"),
    ],
)
def test_an_unknown_model_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_model(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: it has no config\.json"):
        load_model(str(tmp_path))


def test_an_unknown_profile_lists_those_there_are(folder: Path) -> None:
    with pytest.raises(UserError, match="no profile 'qwen'; there are: embedded, plain, smol"):
        load_model(str(folder), profile="qwen")


def test_a_tokenizer_that_cannot_spell_the_exit_text_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    model = load_model(str(folder), profile="embedded")
    words = {"[UNK]": 0, "what": 1, "</s>": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>"
    )
    model.network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot spell the exit text"):
        load_model(str(tmp_path), profile="plain")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stride": 0}, "stride"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "lower max_tokens"),
    ],
)
def test_settings_out_of_range_are_refused(
    model: TransformersModel, wrong: dict[str, float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        model.begin(["a"], [0], **wrong)  # type: ignore[arg-type]


def test_every_profile_is_listed_by_its_name() -> None:
    assert all(isinstance(p, Profile) and p.name == name for name, p in PROFILES.items())
