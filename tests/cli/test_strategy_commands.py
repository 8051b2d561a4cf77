"""impact, blend, cascade and the strategies of decode and evaluate, from the command line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for
from plan_files import plan_file
from synthetic import make_table
from test_cli import mistake
from tiny_model import save_tiny_model
from trace_makers import traces_of

from rlbudget.cli.main import main, parse
from rlbudget.policy.cascade import load_cascade
from rlbudget.policy.folder import Policy, load_policies, load_policy, make_policy, save_policy
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of
from rlbudget.policy.seen import as_text, marks_of, texts_of
from rlbudget.strategies.blend import load_blend
from rlbudget.strategies.compose import Strategy, compose
from rlbudget.strategies.impact_file import load_impact
from rlbudget.traces.store import TraceWriter, digest, iter_questions, load_table
from rlbudget.traces.table import TraceTable, split_questions

torch.set_num_threads(1)

DOCS = Path(__file__).parents[2] / "docs"
SPLIT = 3


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def write(folder: Path, table: TraceTable) -> Path:
    with TraceWriter(folder) as writer:
        for trace in traces_of(table):
            writer.add(trace)
    return folder


def trained_on(traces: Path, seed: int, **of_traces: Any) -> Policy:
    """A random policy that says what it was trained on."""
    policy = policy_for(load_table(traces), "free", seed)
    split = split_questions(load_table(traces), seed=of_traces.get("split_seed", SPLIT))
    known = [*split.train.question_ids, *split.validation.question_ids]
    return make_policy(
        policy.tensors,
        features=policy.features,
        preset="free",
        price_range=policy.price_range,
        trained={"traces": {"digest": digest(traces), "split_seed": SPLIT, **of_traces}},
        seen=marks_of(known, texts_of(iter_questions(traces))),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of two models, three policies, a tiny model, a guard and rules."""
    folder = tmp_path_factory.mktemp("home")
    write(folder / "traces", make_table(160, seed=1))
    write(folder / "large", make_table(160, seed=2, mean_tokens=160))
    for seed, name in enumerate(("a", "b")):
        save_policy(folder / name, trained_on(folder / "traces", seed))
    save_policy(folder / "other", trained_on(folder / "traces", 5, split_seed=SPLIT + 1))
    save_tiny_model(folder / "model")
    (folder / "rules.toml").write_text('[[rule]]\nname = "even"\ntask = "even"\nthen = "full"\n')
    main(["impact", str(folder / "a"), str(folder / "traces"),
          "--out", str(folder / "guard.safetensors"), "--max-risk", "0.05"])  # fmt: skip
    main(["blend", str(folder / "a"), str(folder / "b"), str(folder / "traces"),
          "--out", str(folder / "blend.json")])  # fmt: skip
    return folder


def run(home: Path, line: str) -> None:
    """A command line; ``@name`` is a file or folder of ``home``."""
    main([word.replace("@", f"{home}/") for word in line.split()])


def plan_of(home: Path, **said: Any) -> Path:
    """A plan in ``home``, whose paths are relative to it."""
    return plan_file(home / "plan.toml", **said)


def decode_line(home: Path, plan: dict[str, Any], rest: str = "") -> list[str]:
    words = f"decode --model @model --profile embedded --max-tokens 24 {rest}".split()
    return [*(word.replace("@", f"{home}/") for word in words), "--plan",
            str(plan_of(home, **plan)), "What is 2 + 3?"]  # fmt: skip


def test_the_impact_model_is_fitted_on_the_policys_own_split(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, f"impact @a @traces --out {tmp_path}/guard.safetensors --max-risk 0.05")
    said = capsys.readouterr().out
    split = split_questions(load_table(home / "traces"), seed=SPLIT)
    parts = [len(part) for part in (split.train, split.validation, split.held_out)]
    assert [int(n) for n in re.findall(r"\d+", said.split("\n")[0])] == parts
    assert re.search(r"ECE 0\.\d{4}, Brier 0\.\d{4}", said)
    assert len(re.findall(r"^0\.\d+ ", said, flags=re.MULTILINE)) == len(RELATIVE_PRICES)
    guard = load_impact(tmp_path / "guard.safetensors")
    made_with = load_policy(home / "a").made_with
    assert made_with is not None
    assert guard.trained == {
        "digest": digest(home / "traces"), "split_seed": SPLIT, "seen": as_text(made_with),
    }  # fmt: skip
    assert (tmp_path / "guard.svg").read_text().startswith("<?xml")
    run(home, f"impact @a @traces --out {tmp_path}/again.safetensors --seed 0")
    again = load_impact(tmp_path / "again.safetensors")
    for first, second in zip(guard.weights + guard.biases, again.weights + again.biases,
                             strict=True):  # fmt: skip
        np.testing.assert_array_equal(first, second)


def test_the_blend_is_of_these_policies(home: Path) -> None:
    saved = load_blend(home / "blend.json")
    assert len(saved.members) == 2
    assert saved.trained["split_seed"] == SPLIT
    assert saved.trained["seen"] == load_policy(home / "a").config["seen"]


def test_what_one_of_two_policies_has_seen_is_not_held_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, f"blend @a @other @traces --out {tmp_path}/blend.json")
    said = capsys.readouterr()
    one, two = (
        set(split_questions(load_table(home / "traces"), seed=seed).held_out.question_ids)
        for seed in (SPLIT, SPLIT + 1)
    )
    assert f"Utility on {len(one & two)} held-out questions" in said.out
    assert f"other: has seen {len(one - two)} of the held-out questions" in said.err


def test_a_guard_fitted_on_grown_traces_is_measured_on_unseen_questions(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = traces_of(make_table(161, seed=1))
    with TraceWriter(tmp_path / "grown") as writer:
        for trace in traces:
            writer.add(trace)
    run(home, f"impact @a {tmp_path}/grown --out {tmp_path}/guard.safetensors")
    before, now = (
        set(split_questions(load_table(folder), seed=SPLIT).held_out.question_ids)
        for folder in (home / "traces", tmp_path / "grown")
    )
    measured = int(re.findall(r"measured on (\d+) held-out", capsys.readouterr().out)[0])
    assert measured == len(now & {*before, "q160"})


def test_one_policy_is_blended_with_itself_at_several_prices(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, f"blend @a @traces --out {tmp_path}/v.json --price-factor 0.5 --price-factor 2")
    assert load_blend(tmp_path / "v.json").price_factors == (0.5, 2.0)
    main(decode_line(home, {"policy": "a", "combine": str(tmp_path / "v.json")}))
    assert "Tokens: " in capsys.readouterr().out


GUARD = {"folder": "guard.safetensors"}
RULES = {"file": "rules.toml"}
TWO = {"policies": ["a", "b"]}


@pytest.mark.parametrize("plan", [
    {**TWO, "combine": "mean"},
    {**TWO, "combine": "vote", "price_factors": [0.5, 2.0]},
    {"policy": "a", "combine": "vote", "price_factors": [0.5, 1, 2]},
    {**TWO, "combine": "blend.json", "guard": GUARD, "rules": RULES},
])  # fmt: skip
def test_decode_serves_every_composition(
    home: Path, capsys: pytest.CaptureFixture[str], plan: dict[str, Any]
) -> None:
    main(decode_line(home, plan))
    said = capsys.readouterr()
    assert re.search(r"Tokens: \d+ = \d+ thinking", said.out)
    assert ("so: " in said.err) == ("rules" in plan)


def test_decode_says_how_sure_a_guarded_exit_is(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for risk in ("0", "1"):
        plan = {"policy": "a", "guard": {**GUARD, "max_risk": int(risk)}}
        for seed in range(6):
            main(decode_line(home, plan, f"--seed {seed}"))
            said = capsys.readouterr().out
            stopped = "Stopped by the policy" in said
            assert stopped == ("Confidence of the exit:" in said)
            found[risk, seed] = stopped
    assert not any(stopped for (risk, _), stopped in found.items() if risk == "0")
    assert any(stopped for (risk, _), stopped in found.items() if risk == "1")


def test_evaluate_measures_what_decode_serves(home: Path, tmp_path: Path) -> None:
    plan_of(home, **TWO, combine="blend.json", guard={**GUARD, "max_risk": 0.1}, rules=RULES)
    run(home, f"evaluate @traces --plan @plan.toml --draws 20 --out {tmp_path}")
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    kinds = {row["method"]: row["kind"] for row in evaluation["summary"]}
    for name in ("blend", "blend+guard", "blend+guard+rules"):
        assert kinds[name] == "learned"
    assert evaluation["split_seed"] == SPLIT
    assert evaluation["notes"] == []
    # The row of a method is the replay of its composition.
    policies = load_policies([home / "a", home / "b"])
    guard = load_impact(home / "guard.safetensors")
    composed = compose(policies, Strategy(load_blend(home / "blend.json"), guard=guard,
                                          max_risk=0.1))  # fmt: skip
    table = load_table(home / "traces")
    split = split_questions(table, seed=SPLIT)
    rest = table.take(np.flatnonzero(~np.isin(table.question_ids, split.held_out.question_ids)))
    price = token_price_of(0.1, rest)
    done = composed.replay(split.held_out, price).outcome
    row = next(r for r in evaluation["results"]
               if r["method"] == "blend+guard" and r["relative_price"] == 0.1)  # fmt: skip
    assert row["tokens"]["total"] == pytest.approx(float(done.tokens.mean()))
    assert row["exact_match"] == pytest.approx(float(done.exact_match.mean()))


def test_a_cascade_is_trained_measured_and_served(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cascade.safetensors"
    run(home, f"cascade @traces @large --ratio 0.25 --out {file} --total-timesteps 20000"
              " --large-policy @a")  # fmt: skip
    said = capsys.readouterr()
    assert len(re.findall(r"^0\.\d+ ", said.out, flags=re.MULTILINE)) == len(RELATIVE_PRICES)
    assert "large+policy" in said.out
    counts = re.search(
        r"better than the best model alone at (\d), worse at (\d);"
        r" 48 questions cannot tell at (\d)",
        said.out,
    )
    assert counts is not None
    told = [said.out.count(f"({verdict})") for verdict in ("better", "worse", "cannot tell")]
    assert told == [int(count) for count in counts.groups()]
    assert sum(told) == 6
    cascade = load_cascade(file)
    assert cascade.ratio == 0.25
    same = {"model": "none", "stride": 8}
    assert cascade.config["trained"]["recorded"] == {"small": same, "large": same}
    for large in ({}, {"large_policy": "b"}):
        cascade_ = {"folder": str(file), "large": str(home / "model"), **large}
        main(decode_line(home, {"cascade": cascade_}, "--seed 2"))
        assert re.search(r"Tokens: [\d.]+ = 0\.25 x \(\d+ thinking", capsys.readouterr().out)


CASCADE = {"folder": "none", "large": "model"}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "risk": ({"policy": "a", "guard": {**GUARD, "max_risk": 1.5}},
             "plan.toml:2: max_risk must lie in"),
    "no guard": ({"policy": "a", "guard": {"folder": "none"}}, "no impact model"),
    "a blend as guard": ({"policy": "a", "guard": {"folder": "blend.json"}},
                         "not an impact model"),
    "rules as blend": ({"policy": "a", "combine": "rules.toml"}, "not a blend"),
    "no blend": ({"policy": "a", "combine": "most"}, "no blend"),
    "order": ({"policies": ["b", "a"], "combine": "blend.json"}, "same order"),
    "two": (TWO, "say how to combine"),
    "nothing": ({}, "name a policy, policies, a cascade or a chooser"),
    "no cascade": ({"cascade": CASCADE}, "no cascade"),
    "a blend as cascade": ({"cascade": {**CASCADE, "folder": "blend.json"}}, "not a cascade"),
    "no large model": ({"cascade": {"folder": "none"}}, "plan.toml:1: [cascade] lacks large"),
    "both": ({"policy": "a", "cascade": CASCADE}, "leave the policy out"),
    "unknown": ({"policy": "a", "prise": 3}, "plan.toml:2: prise: unknown"),
    "kind": ({"policy": "a", "max_thinking_tokens": "many"}, "must be a whole number"),
    "two ways": ({"policy": "a", "effort": "low", "token_price": 1e-3}, "say one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_a_plan_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    plan, said = MISTAKES[name]
    assert said in mistake(capsys, *decode_line(home, plan))


OTHERS = {
    "impact @a @traces --out @x.json": ".safetensors file",
    "impact @a @traces --out @x.safetensors --max-risk -0.1": "max_risk must lie in",
    "impact @none @traces --out @x.safetensors": "none",
    "blend @traces --out @x.json": "policy folders",
    "blend @a @b @traces --out @x.json --price-factor 2": "each member",
    "evaluate @traces --plan @guarded.toml --folds 2 --out @x": "folds 1 only",
    "cascade @traces @large --ratio 2 --out @x.safetensors": "ratio is 2",
    "cascade @traces @large --ratio 0.5 --out @x": ".safetensors file",
    "cascade @traces @none --ratio 0.5 --out @x.safetensors": "none",
}


@pytest.mark.parametrize("line", OTHERS)
def test_a_mistake_of_the_others_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    plan_file(home / "guarded.toml", policy="a", guard=GUARD)
    words = [word.replace("@", f"{home}/") for word in line.split()]
    assert OTHERS[line] in mistake(capsys, *words)
    assert not (home / "x.safetensors").exists()
    assert not (home / "x.json").exists()


def test_a_guard_of_another_observation_and_a_large_model_that_is_not_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained_on(home / "traces", 0)
    fewer = policy_for(_less(load_table(home / "traces")), "free", 0)
    save_policy(tmp_path / "fewer", fewer)
    assert fewer.features != whole.features
    line = decode_line(home, {"policy": str(tmp_path / "fewer"), "guard": GUARD})
    assert "another observation" in mistake(capsys, *line)
    file = tmp_path / "cascade.safetensors"
    run(home, f"cascade @traces @large --ratio 0.5 --out {file} --total-timesteps 1")
    capsys.readouterr()
    gone = {"folder": str(file), "large": str(home / "gone")}
    line = decode_line(home, {"cascade": gone})
    assert "no model folder" in mistake(capsys, *line)


def _less(table: TraceTable) -> TraceTable:
    return replace(table, signals={n: c for n, c in table.signals.items() if n != "p_end_max"})


@pytest.mark.parametrize("page", ["impact.md", "ensembles.md"])
def test_the_commands_that_are_shown_can_be_parsed(page: str) -> None:
    lines = commands(page)
    assert len(lines) >= 5
    for line in lines:
        parse(line[1:])


def commands(page: str) -> list[list[str]]:
    """The rlbudget commands of a page, each as words."""
    import shlex

    text = (DOCS / page).read_text(encoding="utf-8")
    block = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("rlbudget ")]


def plans_of(page: str) -> list[tuple[str, str]]:
    """The plans that a page shows: name and text."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(# (\S+)\n.*?)```", text, flags=re.DOTALL)
    return [(name, block) for block, name in blocks]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["impact.md", "ensembles.md"])
def test_the_commands_that_are_shown_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlbudget.agents import config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "MOST_STEPS", 40_000)  # it is shown, not to be good
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "sums"\nquestion = "[+]"\n'
                                         'min_tokens = 16\n')  # fmt: skip
    for name, text in plans_of(page):
        (tmp_path / name).write_text(text)
    for line in commands(page):
        main(["300" if word == "1200" else word for word in line[1:]])
