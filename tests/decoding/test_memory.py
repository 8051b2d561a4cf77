"""Devices, dtypes, memory and numbers that run out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model, tiny_network, tiny_questions, tiny_task, tiny_tokenizer

from rlbudget.decoding.decode import decode
from rlbudget.decoding.record import RecordStats, record
from rlbudget.decoding.record_samples import record_samples
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.decode_batch import NOT_NUMBERS
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.network import Decision
from rlbudget.traces.store import load_traces

torch.set_num_threads(1)
N = 10


@dataclass
class Scripted:
    """Stops from ``at`` thinking tokens on; None: never."""

    at: int | None
    features: tuple[str, ...] = ("thinking_tokens", "entropy_mean")
    price_range: tuple[float, float] = (1e-5, 1e-2)

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        stop = self.at is not None and float(observation[0]) >= self.at
        return Decision(stop=stop, stop_probability=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def narrow(model: TransformersModel, rows: int, error: type[Exception]) -> list[int]:
    """Let the network fail on forward passes of more than ``rows`` rows; the widths it saw."""
    seen: list[int] = []

    def check(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        width = len(kwargs["input_ids"])
        seen.append(width)
        if width > rows:
            raise error("CUDA out of memory. DefaultCPUAllocator: can't allocate memory")

    model.network.register_forward_pre_hook(check, with_kwargs=True)
    return seen


def recorded(model: TransformersModel, out: Path, told: list[str] | None = None) -> RecordStats:
    return record(
        model, tiny_task(N), out, stride=8, max_tokens=24, batch_size=8,
        on_halved=None if told is None else told.append,
    )  # fmt: skip


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_goes_on(
    folder: Path, tmp_path: Path, error: type[Exception]
) -> None:
    recorded(load_model(str(folder), profile="embedded"), tmp_path / "wide")
    model = load_model(str(folder), profile="embedded")
    seen, told = narrow(model, 3, error), list[str]()
    assert recorded(model, tmp_path / "narrow", told).n == N
    assert told == [f"out of memory: goes on with {n} decodes at once" for n in (4, 2)]
    assert max(seen) == 8
    wide, halved = (
        {t.question_id: (t.final, [c.exit for c in t.checkpoints]) for t in load_traces(folder_)}
        for folder_ in (tmp_path / "wide", tmp_path / "narrow")
    )
    assert sum(wide[key] == halved[key] for key in wide) >= N - 1


def test_out_of_memory_halves_sampling_too(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder), profile="embedded")
    narrow(model, 3, torch.OutOfMemoryError)
    stats = record_samples(
        model, tiny_task(4), tmp_path / "t", samples=3, max_tokens=16, batch_size=8
    )
    assert stats.n == 4


def test_a_decode_that_no_memory_holds_is_one_line(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder), profile="embedded")
    narrow(model, 0, torch.OutOfMemoryError)
    with pytest.raises(UserError, match="does not hold a single decode"):
        recorded(model, tmp_path / "t")


def test_other_failures_of_a_network_are_no_lack_of_memory(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder), profile="embedded")

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("a shape is wrong")

    model.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        recorded(model, tmp_path / "t")


LIMITED = """
import resource, sys
import torch
from tiny_model import tiny_task
from rlbudget.decoding.record import record
from rlbudget.models import load_model
torch.set_num_threads(1)
model = load_model(sys.argv[1], profile="embedded")
model.begin(["2?"], [0], max_tokens=4).advance()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# Held while the network runs alone: 64 decodes of 120 tokens keep 126 MB of keys and values.
hold = lambda limit: lambda *_: resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
model.network.register_forward_pre_hook(hold(used + 40 * 2**20))
model.network.register_forward_hook(hold(-1), always_call=True)
told = []
stats = record(model, tiny_task(64), sys.argv[2], stride=64, max_tokens=120, batch_size=64,
               on_halved=told.append)
print(stats.n, told)
"""


def test_a_real_limit_of_memory_halves_the_batch(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", hidden=256, layers=8)
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(tmp_path / "traces")],
        capture_output=True, text=True, timeout=300,
        # Arenas of malloc reserve addresses that a limit does not see being used.
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin",
             "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("64 ['out of memory"), ran.stdout


def test_a_dtype_is_that_of_all_weights(folder: Path) -> None:
    for name in ("float32", "bfloat16", "float16"):
        model = load_model(str(folder), profile="embedded", device="cpu", dtype=name)
        assert {p.dtype for p in model.network.parameters()} == {getattr(torch, name)}
        batch = model.begin(tiny_questions(3), range(3), max_tokens=8)
        batch.advance()
        assert batch.generated


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"device": "gpu"}, "no device 'gpu'; there are: cpu, cuda"),
        ({"device": "cuda:99"}, "there is no device cuda:99 on this machine"),
        ({"dtype": "int4"}, "no dtype 'int4'; there are: auto, float32, bfloat16, float16"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(
    folder: Path, settings: dict[str, str], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        load_model(str(folder), **settings)  # type: ignore[arg-type]


def nan_model(folder: Path) -> TransformersModel:
    tokenizer, network = tiny_tokenizer(), tiny_network()
    with torch.no_grad():
        network.model.norm.weight.fill_(6e4)
        network.lm_head.weight.fill_(6e4)
    network.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), profile="embedded")


def test_logits_that_are_no_numbers_are_one_line(tmp_path: Path) -> None:
    model = nan_model(tmp_path / "model")
    for temperature in (0.0, 1.0):
        for policy in (Scripted(None), Scripted(8)):
            found = decode(model, "2?", policy, token_price=1e-3, temperature=temperature,
                           stride=8, max_tokens=16)  # fmt: skip
            assert found.message == NOT_NUMBERS
    with pytest.raises(UserError, match="logits are not numbers"):
        recorded(model, tmp_path / "traces")


def test_numbers_are_no_nan(folder: Path) -> None:
    def run(questions: Sequence[str]) -> set[int]:
        batch = load_model(str(folder), profile="embedded").begin(questions, range(len(questions)))
        batch.advance()
        return batch.broken

    assert run(tiny_questions(8)) == set()
