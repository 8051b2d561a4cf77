"""Recording through a server that decodes the embedded model, against recording the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlbudget.agents.freeze import freeze
from rlbudget.agents.training import train_on
from rlbudget.cli.main import main
from rlbudget.decoding.record import record
from rlbudget.decoding.record_served import Listening, Served, ServedStats, record_served
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.served import Asked
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.signals.tokens import EXIT_SIGNALS, TOP_SIGNALS
from rlbudget.tasks import Task, load_task
from rlbudget.traces.store import load_traces
from rlbudget.traces.trace import Trace
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

N, CAP, STRIDE = 6, 60, 16


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("embedded", n=N, seed=5)


@pytest.fixture
def toy(model: TransformersModel) -> Iterator[tuple[Toy, str]]:
    toy = Toy(model)
    with serving(toy) as url:
        yield toy, url


def through(
    urls: list[str], task: Task, folder: Path, *, temperature: float = 1.0, resume: bool = False,
    stride: int = STRIDE,
) -> ServedStats:  # fmt: skip
    served = Served(urls, profile="embedded", asked=Asked(concurrency=8), patience=5.0)
    return record_served(
        served, task, folder, stride=stride, max_tokens=CAP, temperature=temperature,
        resume=resume, listening=Listening(on_left_out=lambda why: pytest.fail(why)),
    )  # fmt: skip


def by_id(folder: Path) -> dict[str, Trace]:
    return {trace.trace_id: trace for trace in load_traces(folder)}


def assert_same_decode(here: Trace, there: Trace) -> None:
    """Tokens, answers and scores are equal; what is listed of tokens is the same but rounding."""
    assert there.final == here.final
    assert len(there.checkpoints) == len(here.checkpoints)
    for one, other in zip(here.checkpoints, there.checkpoints, strict=True):
        assert (other.thinking_tokens, other.exit) == (one.thinking_tokens, one.exit)
        assert one.probe is not None
        assert other.probe is not None
        assert other.probe == replace(one.probe, confidence=other.probe.confidence)
        assert other.probe.confidence == pytest.approx(one.probe.confidence, abs=1e-4)
        for name, value in other.signals.items():
            assert value == pytest.approx(one.signals[name], abs=1e-3), name


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_recorded_through_a_server_is_what_the_model_gives(
    model: TransformersModel, task: Task, toy: tuple[Toy, str], tmp_path: Path, temperature: float
) -> None:
    settings = {"stride": STRIDE, "max_tokens": CAP}
    record(model, task, tmp_path / "here", temperature=temperature, **settings)  # type: ignore[arg-type]
    done = through([toy[1]], task, tmp_path / "there", temperature=temperature)
    here, there = by_id(tmp_path / "here"), by_id(tmp_path / "there")
    assert there.keys() == here.keys()
    for name, trace in there.items():
        assert_same_decode(here[name], trace)
        assert trace.meta["natural"] == here[name].meta["natural"]
        assert (trace.model, trace.meta["top_logprobs"]) == ("toy", 20)
        for point in trace.checkpoints:
            assert {*point.signals} == {*TOP_SIGNALS, *EXIT_SIGNALS[:2], TOKEN_REPEATS}
    assert any(not trace.meta["natural"] for trace in there.values())
    assert done.stats.n == N
    assert done.spent.again > 0.5 * done.spent.sent


def test_a_recording_goes_on_and_refuses_other_settings(
    task: Task, toy: tuple[Toy, str], tmp_path: Path
) -> None:
    first = replace(task, questions=task.questions[:2])
    through([toy[1]], first, tmp_path / "traces", temperature=0.0)
    done = through([toy[1]], task, tmp_path / "traces", temperature=0.0, resume=True)
    assert (done.stats.n, done.stats.skipped) == (N - 2, 2)
    assert len(by_id(tmp_path / "traces")) == N
    with pytest.raises(UserError, match="recorded with stride 16, not 8"):
        through([toy[1]], task, tmp_path / "traces", temperature=0.0, stride=8, resume=True)


def test_a_server_of_text_alone_leads_to_a_policy_on_the_text(
    toy: tuple[Toy, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = toy
    server.ids, server.logprobs, server.native = False, 0, False
    command = ["record", "--model", url, "--profile", "embedded", "--tokenizer", "embedded",
               "--task", "embedded", "--n", "12", "--max-tokens", "60", "--stride", "16",
               "--out", str(tmp_path / "traces")]  # fmt: skip
    main(command)
    said = capsys.readouterr().err
    assert "an OpenAI-compatible server, prefixes as text, 0 log-probabilities" in said
    assert "; the presets probe and turns; rules that cannot be measured: p_end, certain" in said
    assert "warning: the server takes text only" in said
    traces = load_traces(tmp_path / "traces")
    assert len(traces) == 12
    for trace in traces:
        for point in trace.checkpoints:
            assert {*point.signals} == {*TEXT_SIGNALS, TOKEN_REPEATS}
            assert point.probe is None
    train_on(tmp_path / "traces", tmp_path / "run", total_timesteps=4096)
    freeze(tmp_path / "run", tmp_path / "policy")
    main(["decode", "--model", url, "--tokenizer", "embedded", "--policy",
          str(tmp_path / "policy"), "Solve for m: 9*m + 2 = 110"])  # fmt: skip
    assert "Answer: " in capsys.readouterr().out
