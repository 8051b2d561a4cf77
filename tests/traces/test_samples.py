"""Sampling as a decode: votes, orders, its rules, its environment, import and recording."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table
from tiny_model import save_tiny_model, tiny_task

import rlbudget.envs  # noqa: F401
from rlbudget.agents.rules import rules_for
from rlbudget.agents.rules.sampling import AC_BETA, ESC, dirichlet_lead
from rlbudget.agents.training import train_on
from rlbudget.decoding.record_samples import record_samples
from rlbudget.errors import UserError
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.models import load_model
from rlbudget.policy.observation import features_of, observe
from rlbudget.traces.columns import table_of
from rlbudget.traces.interchange import import_jsonl
from rlbudget.traces.samples import (
    MOST_SAMPLES,
    ORDERS,
    VOTE_SIGNALS,
    Sample,
    Sampled,
    beta_lead,
    traces_of_samples,
)
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable

torch.set_num_threads(1)


def sampled(i: int, answers: list[str], right: str = "a") -> Sampled:
    samples = tuple(Sample(a, int(a == right), 5 + k) for k, a in enumerate(answers))
    return Sampled(f"q{i}", "made", f"What is {i}?", right, "none", samples)


def made(n: int = 60, k: int = 12, seed: int = 0) -> list[Sampled]:
    rng = np.random.default_rng(seed)
    return [
        sampled(i, rng.choice(["a", "b", "c"], k, p=p).tolist())
        for i, p in enumerate(rng.dirichlet((2.0, 0.8, 0.5), n))
    ]


answers = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=2, max_size=12)


@settings(max_examples=40, deadline=None)
@given(answers)
def test_every_checkpoint_is_the_majority_so_far(drawn: list[str]) -> None:
    question = sampled(0, drawn)
    for trace in traces_of_samples(question, orders=3):
        assert len(trace.checkpoints) == len(drawn) - 1
        assert trace.final.thinking_tokens == sum(s.tokens for s in question.samples)
        before = 0
        for number, point in enumerate(trace.checkpoints, start=1):
            assert point.thinking_tokens > before
            before = point.thinking_tokens
            assert tuple(point.signals) == VOTE_SIGNALS
            assert point.signals["samples"] == number
            votes = [point.signals[f"votes_{k}"] for k in range(1, 6)]
            assert sum(votes) == number
            assert votes == sorted(votes, reverse=True)
            assert point.signals["vote_lead"] == beta_lead(int(votes[0]), int(votes[1]))
            assert point.exit.exact_match == int(point.exit.answer == "a")
        top = Counter(drawn).most_common()
        leaders = {answer for answer, count in top if count == top[0][1]}
        assert trace.final.answer in leaders


def test_orders_are_seeded_and_different() -> None:
    question = sampled(0, list("aabbcabcab"))
    first, again = traces_of_samples(question), traces_of_samples(question)
    assert first == again
    assert len(first) == ORDERS >= 20
    assert len({tuple(c.thinking_tokens for c in trace.checkpoints) for trace in first}) > 10
    assert traces_of_samples(question, seed=1) != first
    assert {trace.question_id for trace in first} == {"q0"}


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 0, 0.5), (1, 0, 0.75), (3, 0, 0.9375)])
def test_the_lead_of_two_answers(a: int, b: int, expected: float) -> None:
    assert beta_lead(a, b) == expected


@pytest.mark.parametrize(("a", "b"), [(2, 1), (5, 3), (20, 20), (30, 9)])
def test_the_lead_is_the_beta_distribution(a: int, b: int) -> None:
    from scipy.stats import beta

    assert beta_lead(a, b) == pytest.approx(beta.sf(0.5, a + 1, b + 1))
    assert dirichlet_lead((a, b)) == pytest.approx(beta_lead(a, b), abs=1e-4)


@pytest.mark.parametrize("votes", [(3, 1, 1, 0, 0), (10, 9, 8, 1, 1), (0, 0, 0, 0, 0), (39, 1)])
def test_the_lead_of_five_is_that_of_simulated_shares(votes: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).dirichlet(np.array(votes) + 1, 200_000)
    expected = (drawn.argmax(axis=1) == 0).mean()
    assert dirichlet_lead(votes) == pytest.approx(expected, abs=0.005)


def test_the_observation_tells_the_first_samples_apart() -> None:
    """Among 40 samples the steps that decide, one vote or two, must not vanish in the spread."""
    agreed = table_of(traces_of_samples(sampled(0, ["a"] * 40), orders=1))
    seen = observe(agreed, features_of(agreed, "free"))
    scaled = (seen - seen.mean(axis=0)) / np.where(seen.std(axis=0) > 0, seen.std(axis=0), 1)
    assert np.abs(scaled[1] - scaled[0]).max() > 1.5


def test_thresholds_of_adaptive_consistency_are_tried_between_the_first_votes(
    table: TraceTable,
) -> None:
    tried = {parameters["threshold"] for parameters in AC_BETA.grid(table)}
    assert {beta_lead(2, 0), beta_lead(2, 1), beta_lead(3, 0), beta_lead(4, 1)} <= tried


@pytest.fixture(scope="module")
def table() -> TraceTable:
    return table_of([t for question in made() for t in traces_of_samples(question)])


def test_esc_stops_at_the_end_of_a_window_that_agrees(table: TraceTable) -> None:
    for window in (2, 3, 5):
        stops = ESC.stops(table, {"window": window})
        traces = [t for question in made() for t in traces_of_samples(question)]
        for stop, trace in zip(stops, traces, strict=True):
            streaks = [c.signals["vote_streak"] for c in trace.checkpoints]
            says = [
                k for k, streak in enumerate(streaks, start=1)
                if k % window == 0 and streak >= window
            ]  # fmt: skip
            assert stop == (says[0] - 1 if says else -1)


def test_adaptive_consistency_asks_for_more_where_votes_are_split() -> None:
    agreed = table_of(traces_of_samples(sampled(0, ["a"] * 12)))
    split = table_of(traces_of_samples(sampled(1, ["a", "b"] * 6)))
    threshold = {"threshold": 0.95}
    assert set(AC_BETA.stops(agreed, threshold).tolist()) == {3}  # P = 31/32 after four
    assert math.isclose(beta_lead(4, 0), 31 / 32)
    assert (AC_BETA.stops(split, threshold) == -1).mean() > 0.5


def test_rules_are_those_of_the_kind_of_traces(table: TraceTable) -> None:
    names = {rule.name for rule in rules_for(table)}
    assert {"fixed-n", "ac-beta", "ac-dirichlet", "esc"} <= names
    assert "deer" not in names
    assert "esc" not in {rule.name for rule in rules_for(make_table(5))}


def lines_of(questions: list[Sampled]) -> list[dict[str, Any]]:
    return [
        {
            "version": 1, "question_id": q.question_id, "task": q.task, "question": q.question,
            "target": q.target, "model": q.model,
            "samples": [
                {"answer": s.answer, "exact_match": s.exact_match, "tokens": s.tokens}
                for s in q.samples
            ],
        }
        for q in questions
    ]  # fmt: skip


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_samples_are_imported_trained_on_and_evaluated(tmp_path: Path) -> None:
    file = write(tmp_path / "samples.jsonl", lines_of(made()))
    stats = import_jsonl(file, tmp_path / "traces")
    assert stats.n == 60 * ORDERS
    assert load_traces(tmp_path / "traces")[0] == traces_of_samples(made()[0])[0]
    train_on(tmp_path / "traces", tmp_path / "run", total_timesteps=2_000)
    from rlbudget.agents.freeze import freeze

    freeze(tmp_path / "run", tmp_path / "policy")
    evaluation = evaluate_folder(
        tmp_path / "traces", policies=[tmp_path / "policy"], out=tmp_path / "out", draws=50
    )
    assert evaluation["held_out_traces"] == ORDERS * evaluation["held_out_questions"]
    assert {"ac-beta", "esc", "policy"} <= {row["method"] for row in evaluation["summary"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.update(samples=[]), "fewer than 2 samples"),
        (lambda row: row["samples"][1].update(tokens=0), "a sample without a token"),
        (
            lambda row: row["samples"][1].update(exact_match=2),
            "$.samples[1].exact_match must be 0 or 1",
        ),
        (lambda row: row["samples"][1].pop("tokens"), "missing field $.samples[1].tokens"),
        (lambda row: row.update(target=" "), "target is empty"),
        (lambda row: row.update(colour="red"), "unknown field $.colour"),
        (lambda row: row.update(question_id="q0"), "$.question_id 'q0' came before"),
        (lambda row: row.update(version=2), "unsupported $.version 2"),
    ],
)
def test_bad_samples_are_named_by_file_and_line(change: Any, said: str, tmp_path: Path) -> None:
    rows = lines_of(made(2))
    change(rows[1])
    file = write(tmp_path / "samples.jsonl", rows)
    with pytest.raises(UserError) as raised:
        import_jsonl(file, tmp_path / "traces")
    assert str(raised.value).startswith(f"{file}:2: ")
    assert said in str(raised.value)


def test_absent_matches_are_scored_and_meta_goes_into_the_traces(tmp_path: Path) -> None:
    (row,) = lines_of(made(1))
    row.update(target="18", task="gsm8k", meta={"request": 2**70})
    row["samples"] = [{"answer": a, "tokens": 9} for a in ("It is 18.0.", "$18", "19")]
    import_jsonl(write(tmp_path / "samples.jsonl", [row]), tmp_path / "traces")
    for trace in load_traces(tmp_path / "traces"):
        assert (trace.final.exact_match, trace.meta["request"]) == (1, 2**70)
        assert trace.meta["scorer"] == "math"


def test_samples_and_traces_do_not_mix(tmp_path: Path) -> None:
    from trace_makers import make_trace

    from rlbudget.traces.trace import trace_to_dict

    file = write(tmp_path / "both.jsonl", [*lines_of(made(1)), trace_to_dict(make_trace(0))])
    with pytest.raises(UserError, match="may not stand in one file"):
        import_jsonl(file, tmp_path / "traces")


def test_the_environment_passes_the_check_and_pays_the_majority(table: TraceTable) -> None:
    env = gymnasium.make("rlbudget/Sampling-v0", traces=table, token_price=(1e-4, 1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0, options={"trace": 3, "token_price": 1e-3})
    _, reward, done, _, info = env.step(1)
    row = table.offsets[3]
    assert done
    assert reward == table.exit_exact_match[row] - 1e-3 * table.thinking_tokens[row]
    assert info["answer_tokens"] == 0
    with pytest.raises(UserError, match="not made of samples"):
        gymnasium.make("rlbudget/Sampling-v0", traces=make_table(5), token_price=(1e-4, 1e-3))


def test_a_recording_of_samples_resumes_and_is_the_same_again(tmp_path: Path) -> None:
    model = load_model(str(save_tiny_model(tmp_path / "model")), profile="embedded")
    settings_ = {"samples": 4, "max_tokens": 24, "batch_size": 16}
    whole = record_samples(model, tiny_task(10), tmp_path / "a", **settings_)  # type: ignore[arg-type]
    assert (whole.n, whole.skipped) == (10, 0)
    record_samples(model, tiny_task(4), tmp_path / "b", **settings_)  # type: ignore[arg-type]
    rest = record_samples(model, tiny_task(10), tmp_path / "b", resume=True, **settings_)  # type: ignore[arg-type]
    assert (rest.n, rest.skipped) == (6, 4)
    a, b = ({t.trace_id: t for t in load_traces(tmp_path / f)} for f in "ab")
    assert a == b
    assert len(a) == 10 * ORDERS
    assert load_table(tmp_path / "a").signals["samples"].max() == 3
    with pytest.raises(UserError, match="was recorded with samples 4, not 5:"):
        record_samples(
            model, tiny_task(10), tmp_path / "a", **{**settings_, "samples": 5}, resume=True
        )  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 2"):
        record_samples(model, tiny_task(10), tmp_path / "c", samples=1)


def test_a_thousand_samples_become_traces_in_a_second_with_the_votes_of_the_plain_count() -> None:
    samples = tuple(Sample(str(i * i % 97), 0, 8) for i in range(MOST_SAMPLES))
    begun = time.process_time()
    traces = traces_of_samples(Sampled("q", "t", "?", "1", "m", samples))
    assert time.process_time() - begun < 5  # .2 where nothing else runs
    assert len(traces) == ORDERS
    few = tuple(Sample(str(i * i % 7), 0, 8) for i in range(40))
    for trace in traces_of_samples(Sampled("q", "t", "?", "1", "m", few)):
        votes = [round(trace.checkpoints[-1].signals[f"votes_{i}"]) for i in range(1, 6)]
        assert sorted(votes, reverse=True) == votes
        assert sum(votes) == 39
        assert trace.checkpoints[-1].exit.answer in {"1", "2", "4"}
    with pytest.raises(UserError, match=r"samples are 1,001; 1,000 are the most"):
        traces_of_samples(Sampled("q", "t", "?", "1", "m", (*samples, samples[0])))
