"""Questions streaming through a batch: who joins when, what it holds, what comes out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model, tiny_questions
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlbudget.models import load_model
from rlbudget.models.attention import NAME, Group, groups_of_rows
from rlbudget.models.reading import Finished
from rlbudget.models.sequences import Sequences
from rlbudget.models.stream import stream
from rlbudget.models.transformers_model import TransformersModel

torch.set_num_threads(1)

WIDTH = 6
SETTINGS = {"temperature": 1.0, "max_tokens": 40, "stride": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))), profile="embedded")


def finals(
    model: TransformersModel, n: int, batch_size: int = WIDTH, **settings: int
) -> dict[int, Finished]:
    found: dict[int, Finished] = {}
    for batch in stream(
        model, tiny_questions(n), range(n), batch_size=batch_size, **{**SETTINGS, **settings}  # type: ignore[arg-type]
    ):  # fmt: skip
        for row in list(batch.final):
            assert row not in found
            found[row] = batch.final.pop(row)
    assert set(found) == set(range(n))
    return found


def test_a_decode_is_the_same_in_a_stream_as_alone(model: TransformersModel) -> None:
    n = 24
    alone = {}
    for row, question in enumerate(tiny_questions(n)):
        batch = model.begin([question], [row], **SETTINGS)  # type: ignore[arg-type]
        while not batch.done:
            batch.advance()
        alone[row] = batch.final[0]
    for width in (2, WIDTH, 20, 40):
        found = finals(model, n, width)
        # A draw may lie just on the border, where the last bits decide.
        assert sum(found[row] == alone[row] for row in range(n)) >= n - 1


def test_a_place_that_is_free_is_taken_at_the_next_checkpoint(model: TransformersModel) -> None:
    n = 40
    ended, widths = 0, []
    batches = stream(model, tiny_questions(n), range(n), batch_size=WIDTH, **SETTINGS)  # type: ignore[arg-type]
    batch = next(batches)
    for again in batches:
        ended += len(batch.final)
        batch.final.clear()
        assert again is batch
        widths.append((ended, batch.generated))
        rows = batch.at_checkpoint
        assert len(rows) <= WIDTH
        assert (batch.thinking_tokens(rows) % 8 == 0).all()
    ages = {ended for ended, _ in widths}
    assert len(ages) > 3
    with pytest.raises(ValueError, match="no longer being decoded"):
        batch.thinking_tokens([0])


def test_rows_join_only_on_the_grid(model: TransformersModel) -> None:
    batch = model.begin(["a", "b"], [0, 1], **SETTINGS)  # type: ignore[arg-type]
    assert batch.takes_more
    with torch.inference_mode():
        batch._advance_one()
    assert not batch.takes_more
    with pytest.raises(ValueError, match="rows join only"):
        model.join(batch, ["c"], [2])


def test_memory_is_bounded_whatever_the_number_of_questions(model: TransformersModel) -> None:
    longest = max(len(model.prompt_ids(q)) for q in tiny_questions(120))
    longest += 40 + len(model.vocabulary.exit_ids) + model.profile.max_answer_tokens
    peaks = []
    for n in (20, 120):
        rows = columns = 0
        for batch in stream(model, tiny_questions(n), range(n), batch_size=WIDTH, **SETTINGS):  # type: ignore[arg-type]
            rows = max(rows, batch.held[0])
            columns = max(columns, batch.held[1])
            assert batch._history.shape[0] <= WIDTH
            batch.fork_exits(batch.at_checkpoint)
            batch.final.clear()
        peaks.append((rows, columns))
    for rows, columns in peaks:
        assert rows == WIDTH
        assert columns <= 1.5 * longest + 128


def test_the_limit_of_tokens_narrows_the_batch(model: TransformersModel) -> None:
    questions = tiny_questions(9)
    longest = max(len(model.prompt_ids(q)) for q in questions) + 40
    longest += len(model.vocabulary.exit_ids) + model.profile.max_answer_tokens
    for tokens, wanted in ((2 * longest, 2), (3 * longest - 1, 2), (1, 1), (100 * longest, 9)):
        batch = next(
            stream(model, questions, range(9), batch_size=100, batch_tokens=tokens, **SETTINGS)  # type: ignore[arg-type]
        )
        assert batch.held[0] == wanted


def test_a_cache_that_forgets_takes_new_rows_when_it_is_empty(
    model: TransformersModel, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(model.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, eos_token_id=2,
        bos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    forgetting = load_model(str(tmp_path), profile="embedded")
    narrow, wide = finals(forgetting, 10, 4), finals(forgetting, 10, 10)
    assert sum(narrow[row] == wide[row] for row in range(10)) >= 9


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("new", [1, 3])
def test_grouped_attention_is_that_of_transformers(kv_heads: int, new: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=kv_heads, pad_token_id=0,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(50, (k,), generator=generator).tolist() for k in (30, 22, 9, 12, 3)]
    tokens = torch.randint(50, (5, new), generator=generator)
    read = []
    for implementation in ("sdpa", NAME):
        network.set_attn_implementation(implementation)
        with torch.inference_mode():
            rows = Sequences.begin(network, prompts)
            bounds = ((0, 1, 0), (1, 4, 8), (4, 5, 27)) if implementation == NAME else ()
            rows._groups = tuple(Group(slice(i, j), first) for i, j, first in bounds)
            read.append(rows.read(tokens))
            read.append(rows.read(tokens))
    torch.testing.assert_close(read[2:], read[:2], rtol=1e-4, atol=1e-5)
    with groups_of_rows(()):
        assert network.config._attn_implementation == NAME


def test_rows_are_grouped_by_age_and_few_change_their_place(model: TransformersModel) -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(40)]
    with torch.inference_mode():
        rows = Sequences.begin(model.network, [[5] * length for length in lengths])
    order = rows.oldest_first(64).tolist()
    assert sorted(order) == list(range(40))
    groups = [[lengths[row] for row in order[i : i + 16]] for i in range(0, 40, 16)]
    for older, younger in itertools.pairwise(groups):
        assert min(older) >= max(younger)
    for place, row in enumerate(order):
        stays = order.index(place) // 16 == place // 16
        assert (row == place) == stays
