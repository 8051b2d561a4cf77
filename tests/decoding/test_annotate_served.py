"""Annotating through a server gives what annotating with the model itself gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlbudget.cli.main import main
from rlbudget.decoding.annotate import annotate
from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.observation import features_of
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.signals.tokens import TOP_SIGNALS
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.trace import Trace
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def log(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    record(model, load_task("embedded", n=5, seed=5), folder / "traces", store_text=True)
    path = folder / "log.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": t.trace_id, "question": t.question, "answer": t.final.answer,
                        "thinking": t.meta["thinking"], "target": t.target}) + "\n"
            for t in load_traces(folder / "traces")
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def alone(model: TransformersModel, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "traces"
    annotate(model, log, out)
    return out


def by_id(folder: Path) -> dict[str, Trace]:
    return {trace.trace_id: trace for trace in load_traces(folder)}


@pytest.mark.parametrize("scores", ["prompt_logprobs", "echo", ""])
def test_a_server_annotates_as_the_model_does(
    model: TransformersModel, log: Path, alone: Path, scores: str, tmp_path: Path
) -> None:
    toy = Toy(model, scores=scores, native=scores == "prompt_logprobs")
    with serving(toy) as url:
        main(["annotate", str(log), "--model", url, "--out", str(tmp_path / "out"),
              "--profile", "embedded", "--tokenizer", "embedded"])  # fmt: skip
    found, wanted = by_id(tmp_path / "out"), by_id(alone)
    assert found.keys() == wanted.keys()
    for name, trace in found.items():
        assert (trace.final, trace.target) == (wanted[name].final, wanted[name].target)
        assert len(trace.checkpoints) == len(wanted[name].checkpoints)
        for one, other in zip(trace.checkpoints, wanted[name].checkpoints, strict=True):
            assert (one.thinking_tokens, one.exit) == (other.thinking_tokens, other.exit)
            assert one.probe is not None
            assert other.probe is not None
            assert one.probe.answer == other.probe.answer
            names = {*TEXT_SIGNALS, *(TOP_SIGNALS if scores else ())}
            assert names <= one.signals.keys()
            for signal in names:
                assert one.signals[signal] == pytest.approx(other.signals[signal], abs=1e-3)
    features = {
        name.partition(".")[0] for name in features_of(load_table(tmp_path / "out"), "free")
    }
    assert features == {"thinking_tokens", *(TOP_SIGNALS if scores else TEXT_SIGNALS)}
    # The thinking is scored by one request a row, and never written again.
    asked = [r for r in toy.requests if r.get(scores)]
    assert len(asked) == (len(found) if scores else 0)


def test_shards_of_a_log_are_disjoint_and_together_all(
    model: TransformersModel, log: Path, alone: Path, tmp_path: Path
) -> None:
    parts = []
    for place in (1, 2):
        annotate(model, log, tmp_path / f"{place}", shard=(place, 2), probe_tokens=0)
        parts.append(set(by_id(tmp_path / f"{place}")))
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(by_id(alone))
