"""Findings: every oddity is noticed, said with what to do, and not said where there is none."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import evaluation as advised_evaluation
from rich.console import Console

from rlbudget.cli.findings.decodes import ended, of_profile, of_serving
from rlbudget.cli.findings.examples import EXAMPLES, FirstAnswers, example
from rlbudget.cli.findings.finding import odd
from rlbudget.cli.findings.learning import (
    efforts_table,
    of_certificate,
    of_evaluation,
    of_freezing,
)
from rlbudget.cli.findings.recordings import of_recording
from rlbudget.cli.findings.survey import Survey, survey
from rlbudget.cli.findings.training import TEXT_COSTS, next_steps, of_training, training_tables
from rlbudget.cli.main import parse
from rlbudget.decoding.record import RecordStats
from rlbudget.evaluate.recommendation import recommended
from rlbudget.models.profiles import ChosenBy
from rlbudget.policy.controller import Reason
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.agreement import FIELD, FULL_DECODE, SAID
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

META = {"stride": 16, "max_tokens": 400, "profile": "think", "scorer": "math", "natural": True}


def healthy(i: int) -> Trace:
    """A trace of a set in which nothing is odd."""
    rng = np.random.default_rng(i)
    points = tuple(
        Checkpoint(
            thinking_tokens=16 * (k + 1),
            signals={
                name: float(value) for name, value in zip(SIGNALS, rng.random(14), strict=True)
            },
            exit=Exit("7", int((i + k) % 3 == 0), 6),
            probe=Probe("7", 0.5, 3),
        )
        for k in range(4)
    )
    return Trace(
        trace_id=f"t{i}", question_id=f"q{i}", task="even" if i % 2 else "odd", question=f"{i}?",
        target="7", model="ours", seed=0, final=Final("7", int(i % 4 > 0), 70 + i % 50, 6),
        checkpoints=points, meta=META,
    )  # fmt: skip


def looked_at(folder: Path, traces: Iterable[Trace]) -> Survey:
    with TraceWriter(folder) as writer:
        for trace in traces:
            writer.add(trace)
    return survey(folder)


def warnings(findings: Iterable[str]) -> list[str]:
    mark = "warning: "
    return [found.removeprefix(mark) for found in findings if found.startswith(mark)]


def points(trace: Trace, **changes: Any) -> Trace:
    """A trace whose checkpoints are changed."""
    return replace(trace, checkpoints=tuple(replace(c, **changes) for c in trace.checkpoints))


def test_a_healthy_recording_gets_facts_and_no_warning(tmp_path: Path) -> None:
    found = looked_at(tmp_path, map(healthy, range(600)))
    said = list(of_recording(found, RecordStats(600, 0, 59_700, 14_400, 10.0)))
    assert warnings(said) == []
    assert said == [
        "600 questions, 600 full decodes: exact match 75.0%, 100.5 tokens each"
        " (94.5 thinking, 6.0 answer)",
        "0.0% were cut at the cap of 400 tokens",
        "4.0 checkpoints a decode, one every 16 tokens; an exit there is right 33.3% of the time"
        " and its answer takes 6.0 tokens",
        "exact match by family: odd 50.0%, even 100.0%",
        "spent 59,700 tokens on full decodes and 14,400 on exit answers in 10.0 s (7,410 a second)",
    ]


def test_the_survey_counts_what_the_table_holds(tmp_path: Path) -> None:
    found = looked_at(tmp_path, map(healthy, range(600)))  # three parts
    table = load_table(tmp_path)
    assert (found.traces, found.checkpoints) == (len(table), len(table.thinking_tokens))
    assert found.questions == len(np.unique(table.question_ids))
    assert found.exact_match == table.final_exact_match.mean()
    assert found.tokens == table.full_tokens.mean()
    assert found.exit_tokens == table.exit_answer_tokens.sum()
    assert found.exits_right == table.exit_exact_match.sum()
    assert found.probes == len(table.thinking_tokens)
    assert (found.longest, found.at_longest) == (119, 12)
    entropy = table.signals["entropy_mean"]
    assert found.ranges["entropy_mean"] == (entropy.min(), entropy.max())


def _final(trace: Trace, **changes: Any) -> Trace:
    return replace(trace, final=replace(trace.final, **changes))


def _meta(trace: Trace, **changes: Any) -> Trace:
    return replace(trace, meta={**trace.meta, **changes})


def _exit(trace: Trace, **changes: Any) -> Trace:
    made = (replace(c, exit=replace(c.exit, **changes)) for c in trace.checkpoints)
    return replace(trace, checkpoints=tuple(made))


def _no_natural(trace: Trace) -> Trace:
    meta = {name: value for name, value in trace.meta.items() if name != "natural"}
    return replace(_final(trace, thinking_tokens=100), meta=meta)


def _signals(trace: Trace, change: Callable[[dict[str, float]], dict[str, float]]) -> Trace:
    made = (replace(c, signals=change(dict(c.signals))) for c in trace.checkpoints)
    return replace(trace, checkpoints=tuple(made))


ODD: dict[str, tuple[Callable[[int, Trace], Trace], str, str]] = {
    "all wrong": (
        lambda i, t: _final(t, exact_match=0),
        "every full decode is scored wrong by the scorer math", "choose another scorer",
    ),
    "all right": (
        lambda i, t: _final(t, exact_match=1),
        "every full decode is scored right by the scorer math", "add harder ones",
    ),
    "all wrong in a family": (
        lambda i, t: _final(t, exact_match=i % 2),
        "every answer is scored wrong in odd", "compare answers and targets",
    ),
    "mostly at the cap": (
        lambda i, t: _meta(t, natural=i % 5 == 0),
        "80% of the decodes were cut at the cap of 400 tokens", "a higher --max-tokens",
    ),
    "no natural end at all": (
        lambda i, t: _meta(t, natural=False),
        "no decode ended by itself", "a higher --max-tokens",
    ),
    "probably cut": (
        lambda i, t: _no_natural(t),
        "100% of the decodes end at exactly 100 thinking tokens", '"natural": true or false',
    ),
    "no checkpoint before the end": (
        lambda i, t: replace(t, checkpoints=()) if i % 10 else t,
        "540 of 600 decodes end before their first checkpoint (one every 16 tokens)",
        "take a smaller stride, a quarter of the mean thinking of 94.5 tokens or less",
    ),
    "answers that reason on": (
        lambda i, t: _exit(t, answer_tokens=300),
        "an exit's answer takes 300.0 tokens, more than the thinking of a full decode (94.5)",
        "whose exit text asks for the answer alone",
    ),
    "exits that cost more than the full decode": (
        lambda i, t: _exit(t, answer_tokens=80),
        "of the exits cost more tokens than the full decode",
        "whose exit text asks for the answer alone",
    ),
    "exits never right": (
        lambda i, t: _exit(t, exact_match=0), "no exit is scored right", "another --profile",
    ),
    "exits always right": (
        lambda i, t: _exit(t, exact_match=1), "every exit is scored right", "harder questions",
    ),
    "no probes": (
        lambda i, t: points(t, probe=None),
        "no checkpoint holds a trial answer", "--probe-tokens 8",
    ),
    "probes at some": (
        lambda i, t: points(t, probe=None) if i % 2 else t,
        "only 50% of the checkpoints hold a trial answer", "--probe-tokens 8",
    ),
    "a constant signal": (
        lambda i, t: _signals(t, lambda s: s | {"entropy_mean": 0.5}),
        "the same value at every checkpoint: entropy_mean", "mend what writes it",
    ),
    "a signal missing at some": (
        lambda i, t: _signals(t, lambda s: {n: s[n] for n in s if i % 2 or n != "hedges"}),
        "missing at some checkpoints: hedges", "write it everywhere",
    ),
    "no signal": (
        lambda i, t: points(t, signals={}), "the checkpoints hold no signal", "docs/traces.md",
    ),
    "several strides": (
        lambda i, t: _meta(t, stride=8 if i % 3 == 0 else 16),
        "several values of stride (16, 8)", "a folder for each",
    ),
    "several models": (
        lambda i, t: replace(t, model="theirs" if i % 3 == 0 else "ours"),
        "several values of model (ours, theirs)", "a folder for each",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_about_traces_is_said_with_what_to_do(name: str, tmp_path: Path) -> None:
    change, what, do = ODD[name]
    found = looked_at(tmp_path, (change(i, healthy(i)) for i in range(600)))
    (said,) = warnings(of_recording(found))
    assert what in said
    assert do in said.partition(": ")[2]


def test_few_questions_are_said_to_be_few(tmp_path: Path) -> None:
    (said,) = warnings(of_recording(looked_at(tmp_path, map(healthy, range(60)))))
    assert said.startswith("60 questions are few: 18 would be held out")


def test_samples_are_not_taken_for_thoughts(tmp_path: Path) -> None:
    from rlbudget.traces.samples import Sample, Sampled, traces_of_samples

    drawn = [
        Sampled(f"q{i}", "made", f"{i}?", "7", "ours",
                tuple(Sample("7" if (i + k) % 3 else "8", int((i + k) % 3 > 0), 20 + k)
                      for k in range(4)))
        for i in range(600)
    ]  # fmt: skip
    traces = (trace for sampled in drawn for trace in traces_of_samples(sampled))
    said = list(of_recording(looked_at(tmp_path, traces)))
    assert "600 questions, 12,000 orders of samples" in said[0]
    assert not any("trial answer" in text or "checkpoint" in text for text in warnings(said))


# Examples


def test_the_first_answers_are_shown_once_and_fewer_at_the_end() -> None:
    shown: list[list[str]] = []
    first = FirstAnswers(lambda findings: shown.append(list(findings)))
    for i in range(EXAMPLES + 3):
        first.take(healthy(i))
    first.flush()
    assert len(shown) == 1
    assert len(shown[0]) == 1 + EXAMPLES
    assert shown[0][0] == "the first 5 answers, scored by math:"
    fewer = FirstAnswers(lambda findings: shown.append(list(findings)))
    fewer.take(healthy(1))
    fewer.flush()
    fewer.flush()
    assert len(shown) == 2


def test_an_example_shows_score_target_answer_and_where_it_was_found() -> None:
    trace = _final(healthy(1), answer="So we add them.\nThe answer is **7**.", exact_match=1)
    assert example(trace) == "1  target '7'  answer '7'  in 'So we add them. The answer is **7**.'"
    assert example(_final(trace, answer="8", exact_match=0)) == "0  target '7'  answer '8'"


def test_first_answers_that_are_all_wrong_are_a_warning() -> None:
    shown: list[str] = []
    first = FirstAnswers(shown.extend)
    for i in range(EXAMPLES):
        first.take(_final(healthy(i), exact_match=0))
    (said,) = warnings(shown)
    assert "all scored wrong" in said
    assert "Ctrl-C" in said


# Decodes


ENDS: list[tuple[Reason, str]] = [
    ("policy", "Stopped by the policy at token 24."),
    ("natural", "Ended by itself after 24 tokens of thinking."),
    ("max_tokens", "Cut at the cap of 24 tokens."),
    ("policy_failed", "The policy failed: out of order. The decode went on without it."),
]


@pytest.mark.parametrize(("reason", "said"), ENDS)
def test_how_a_decode_ended_is_one_plain_sentence(reason: Reason, said: str) -> None:
    assert ended(reason, 24, "the policy failed: out of order") == said


MADE = {"model": "org/ours", "profile": "think", "stride": 64, "temperature": 0.6, "scorer": "math"}


def test_a_policy_that_serves_what_it_was_trained_on_is_no_oddity() -> None:
    assert list(of_serving(MADE, MADE)) == []
    assert list(of_serving(MADE, MADE | {"model": "/models/ours"})) == []
    assert list(of_serving({}, MADE)) == []
    assert list(of_serving(MADE, dict.fromkeys(MADE))) == []


@pytest.mark.parametrize(
    ("name", "other", "do"),
    [
        ("model", "org/theirs", "record this model"),
        ("profile", "plain", "decode with --profile think"),
        ("temperature", 0.0, "decode with --temperature 0.6"),
        ("stride", 32, "train on traces of this one"),
        ("scorer", "text", "train again"),
    ],
)
def test_a_policy_that_serves_something_else_is_a_warning(
    name: str, other: object, do: str
) -> None:
    (said,) = warnings(of_serving(MADE, MADE | {name: other}))
    assert str(other) in said
    assert str(MADE[name]) in said
    assert do in said


@pytest.mark.parametrize(
    ("chosen_by", "odd"), [("name", 0), ("model", 0), ("tokenizer", 1), ("default", 1)]
)
def test_the_profile_is_always_shown_and_a_guessed_one_is_a_warning(
    chosen_by: ChosenBy, odd: int
) -> None:
    said = list(of_profile("ours", "think", chosen_by))
    assert said[0].startswith("Model ours, profile think (")
    assert len(warnings(said)) == odd
    assert not odd or "--profile think" in said[1]


# Learning


def config(gap: float | None = 0.3, shares: tuple[float, ...] = (0.9, 0.5), n: int = 800) -> Any:
    rows = [
        {"relative_price": 0.1 * (k + 1), "exact_match": 0.9, "tokens": 100 * share}
        for k, share in enumerate(shares)
    ]
    return {
        "preset": "free", "features": ["a", "b"], "price_range": [1e-4, 1e-2],
        "trained": {
            "traces": {"mean_full_tokens": 100.0, "n_train_questions": n,
                       "recorded": {"model": "ours"}},
            "validation": {"prices": rows, "mean_oracle_gap_closed": gap},
        },
    }  # fmt: skip


def shown_text(made: Any) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=200, color_system=None)
    for heading, table in training_tables(made):
        console.print(heading)
        console.print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_training_says_what_its_policy_saves_by_the_worth_of_an_answer() -> None:
    assert shown_text(config()) == [
        "What the validation questions say",
        "a right answer is worth  policy saves  exact match",
        "1,000 tokens                      10%        90.0%",
        "500 tokens                        50%        90.0%",
    ]
    assert list(next_steps(config(), Path("a/run"))) == [
        "Next: rlbudget freeze a/run --out a/policy"
    ]


def crossfitted(
    low: float | None, high: float | None, rule: str = "confidence", preset: str = "probe"
) -> Any:
    made = config() | {"preset": preset}
    interval = {"oracle_gap_closed": 0.3, "oracle_gap_closed_ci90": [0.1, 0.5]}
    beside = {
        "savings": 0.4, "savings_ci90": [0.3, 0.5],
        "em_loss": 0.004, "em_loss_ci90": [-0.0001, 0.02],
        "rule_savings": 0.2, "rule_savings_ci90": [None, None], "rule_em_loss": -0.0001,
        "rule_em_loss_ci90": [None, None],
    }  # fmt: skip
    made["trained"]["out_of_fold"] = {
        "questions": 250,
        "level": 0.9,
        **interval,
        "rule": {"name": rule, **interval},
        "over_rule": {"difference": 0.0 if low is None else 0.08, "ci90": [low, high]},
        "prices": [{"token_price": 1e-3, "rule": rule, **beside}],
        "savings": [{"max_em_loss": 0.01, **beside}],
    }
    return made


def test_a_cross_fitted_training_says_what_its_own_questions_say_in_percent_and_points() -> None:
    made = crossfitted(0.02, 0.14)
    assert shown_text(made) == [
        "What 250 training questions say, each under a policy that was not trained on it [90%"
        " intervals]",
        "a right answer is worth  policy saves   loses, points   best rule  saves  loses, points",
        "1,000 tokens             40% [30, 50]  0.4 [0.0, 2.0]  confidence    20%            0.0",
        "Where so much may be lost",
        "points  policy saves   loses, points  a rule saves  loses, points",
        "1       40% [30, 50]  0.4 [0.0, 2.0]           20%            0.0",
    ]
    assert list(of_training(made)) == []
    assert list(next_steps(made, Path("run"))) == [
        "The policy is better than the best rule, confidence.",
        "Next: rlbudget freeze run --out policy",
    ]


@pytest.mark.parametrize(
    ("low", "high", "rule", "preset", "said", "last"),
    [
        (-0.1, 0.2, "confidence", "probe",
         "cannot tell the policy from the best rule, confidence, which is the simpler of both",
         "freeze run --rule confidence --out policy"),
        (-0.1, 0.2, "deer", "free", "cannot tell the policy from the best rule, deer.",
         "freeze run --out policy"),
        (-0.3, -0.1, "fixed", "free", "The rule fixed is better than the policy",
         "freeze run --rule fixed --out policy"),
        (None, None, "deer", "turns", "cannot tell the policy from the best rule, deer",
         "freeze run --rule deer --out policy"),
        (-0.1, 0.2, "full", "free", "cannot tell the policy from decoding in full",
         "freeze run --out policy"),
        (-0.3, -0.1, "ac-dirichlet", "free", "take ac-beta", "freeze run --out policy"),
    ],
)  # fmt: skip
def test_a_training_ends_with_the_command_for_what_is_better_or_simpler(
    low: float | None, high: float | None, rule: str, preset: str, said: str, last: str
) -> None:
    lines = list(next_steps(crossfitted(low, high, rule, preset), Path("run")))
    assert said in " ".join(lines)
    assert lines[-1] == f"Next: rlbudget {last}"
    assert max(map(len, lines)) <= 100


def test_every_command_that_is_advised_is_one_that_there_is() -> None:
    found = []
    for ends in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1)):
        for rule in ("deer", "fixed", "full"):
            for line in next_steps(crossfitted(*ends, rule), Path("run")):
                found += re.findall(r"rlbudget ([^;,.]*)", line)
    for verdict in ("better", "worse", "cannot tell"):
        for changes in ({}, {"efforts": []}, {"efforts": [], "folds": 5}):
            for line in recommended(advised_evaluation(verdict) | changes):
                found += re.findall(r"rlbudget ([^;,.]*?)(?: finds it)?(?=[;,.]|$)", line)
    alone = advised_evaluation("worse") | {"efforts": []}
    alone["summary"] = alone["summary"][:2]
    alone["summary"][1]["versus"].pop("policy")
    for line in recommended(alone):
        found += re.findall(r"rlbudget ([^;,.]*)", line)
    commands = {one.partition(" ")[0] for one in found}
    assert commands == {"freeze", "decode", "calibrate", "train"}
    for one in sorted(set(found)):
        parse([*shlex.split(one), *(["question"] if one.startswith("decode") else [])])


def test_what_training_and_freezing_say_fits_a_terminal() -> None:
    made = crossfitted(-0.1, 0.2)
    made["features"] = ["text_hedges"]
    made["trained"]["traces"] |= {"n_train_questions": 40, "recorded": {FIELD: FULL_DECODE}}
    made["trained"]["validation"]["mean_oracle_gap_closed"] = -1.0
    lines = [*shown_text(made), *of_training(made), *next_steps(made, Path("run"))]
    lines += of_freezing(made | {"operating_points": choose_points([], 29)})
    assert SAID in lines
    assert TEXT_COSTS in lines
    assert max(map(len, lines)) <= 100


def test_a_path_that_a_shell_would_split_is_quoted_in_the_next_command() -> None:
    *_, last = next_steps(config(), Path("my runs/policy"))
    assert last == "Next: rlbudget freeze 'my runs/policy' --out 'my runs/frozen'"


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (config(gap=-0.1), "no better than a constant budget"),
        (config(gap=None), "no stop is worth more than a constant budget"),
        (config(shares=(1.0, 0.995)), "saves nothing at any price"),
        (config(shares=(0.4, 0.401)), "stops at the same places at every price"),
        (config(n=40), "trained on 40 questions only"),
    ],
)
def test_an_odd_training_is_a_warning(made: Any, what: str) -> None:
    (said,) = warnings(of_training(made))
    assert what in said
    assert len(said) <= 100


def test_freezing_says_what_was_frozen_and_which_trial_answers_it_makes() -> None:
    said, *_ = of_freezing(config())
    assert said == "a policy, trained on 800 questions of ours; it makes no trial answers"
    rule = config() | {"preset": "turns"}
    rule["trained"]["rule"] = "deer"
    said, *_ = of_freezing(rule)
    assert said.startswith("the rule deer, tuned on 800 questions of ours; it makes trial answers")
    pointed = config(gap=0.0) | {"operating_points": choose_points([], 300)}
    assert len(warnings(of_freezing(pointed))) == 2


@pytest.mark.parametrize(("questions", "said"), [(29, "29 questions only"), (75, "max, high")])
def test_freezing_says_what_efforts_mean_and_warns_in_a_line_each(
    questions: int, said: str
) -> None:
    points = choose_points([Swept(1e-3, 0.0, 0.0, 0.25)], questions)
    table = efforts_table(points)
    assert table.row_count == 5
    assert [list(column.cells)[-1] for column in table.columns] == ["minimal", "6", "0.0", "25%"]
    (odd,) = warnings(of_freezing(config() | {"operating_points": points}))
    assert said in odd
    assert len(odd) <= 100
    (odd,) = warnings(of_freezing(config()))
    assert "no operating points" in odd


def evaluation(
    policy: float | None = 0.4,
    rule: float = 0.1,
    loss: float = 0.005,
    n: int = 800,
    em: float = 0.9,
) -> dict[str, Any]:
    def row(name: str, kind: str, gap: float | None) -> dict[str, Any]:
        return {
            "method": name, "kind": kind, "mean_oracle_gap_closed": gap,
            "savings_at_em_loss": {"0.01": 0.38}, "held_out_em_loss": {"0.01": loss},
        }  # fmt: skip

    return {
        "held_out_questions": n, "full": {"exact_match": em},
        "summary": [row("policy", "learned", policy), row("streak", "rule", rule),
                    row("oracle", "bound", 1.0)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (evaluation(loss=0.03), "lost 3.0 when held out"),
        (evaluation(n=100), "100 held-out questions leave exact match uncertain by 5.9 points"),
        (evaluation(em=0.0), "all wrong"),
        (evaluation(em=1.0), "all right"),
    ],
)
def test_an_odd_evaluation_is_a_warning(found: dict[str, Any], what: str) -> None:
    (said,) = warnings(of_evaluation(found))
    assert what in said
    assert len(said) <= 100


def test_a_certificate_that_saves_nothing_or_leaves_room_is_a_warning() -> None:
    usual = {"savings": 0.3, "token_price": 1e-3}
    assert list(of_certificate(usual, (1e-4, 1e-2))) == []
    assert len(warnings(of_certificate(usual | {"savings": 0.001}, (1e-4, 1e-2)))) == 1
    assert len(warnings(of_certificate(usual | {"token_price": 1e-2}, (1e-4, 1e-2)))) == 1


def test_a_warning_is_marked_and_says_what_to_do() -> None:
    assert odd("nothing there", do="look elsewhere") == "warning: nothing there: look elsewhere"
