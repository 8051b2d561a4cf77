"""choose, and correct --second, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frozen_nets import policy_for
from plan_files import plan_file
from synthetic import make_table
from test_cli import mistake
from tiny_model import save_tiny_model
from trace_makers import traces_of

from rlbudget.cli.main import main
from rlbudget.policy.folder import make_policy, save_policy
from rlbudget.policy.seen import marks_of
from rlbudget.strategies.chooser.folder import load_chooser
from rlbudget.strategies.correction.correct import Correction, Refiner
from rlbudget.strategies.correction.file import (
    load_correction,
    load_second_policy,
    save_correction,
)
from rlbudget.strategies.impact import ImpactModel
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import split_questions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of two models on the same questions, and a policy of each."""
    folder = tmp_path_factory.mktemp("home")
    for seed, (name, tokens) in enumerate((("small", 120), ("large", 160))):
        with TraceWriter(folder / name) as writer:
            for trace in traces_of(make_table(240, seed=seed + 1, mean_tokens=tokens)):
                writer.add(trace)
        policy = policy_for(load_table(folder / name), "free", seed)
        known = {"split_seed": 3}
        split = split_questions(load_table(folder / name), seed=3)
        seen = marks_of([*split.train.question_ids, *split.validation.question_ids])
        own = make_policy(
            policy.tensors, features=policy.features, preset="free",
            price_range=policy.price_range, trained={"traces": known}, seen=seen,
        )  # fmt: skip
        save_policy(folder / f"policy-{name}", own)
    return folder


def words(home: Path, line: str) -> list[str]:
    return [word.replace("@", f"{home}/") for word in line.split()]


BOTH = "choose @small @large"


def test_a_chooser_is_fitted_measured_and_kept(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{BOTH} --ratio 0.2 --ratio 1 --policy @policy-small --policy @policy-large"
    main(words(home, f"{line} --out {tmp_path}/chooser"))
    said = capsys.readouterr().out
    assert said.startswith("Utility on 72 held-out questions")
    for shown in ("best by task", "chooser", "oracle", "over the best alone"):
        assert shown in said
    assert "Of 6 prices the chooser is better than the best model alone at" in said
    chooser = load_chooser(tmp_path / "chooser")
    assert chooser.trained["split_seed"] == 3
    assert [member.ratio for member in chooser.members] == [0.2, 1.0]
    assert all(member.policy is not None for member in chooser.members)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("choose @small --out c", "two or more folders"),
        (f"{BOTH} --ratio 0.2 --out c", "--ratio is given 1 times for 2 folders"),
        (f"{BOTH} --ratio 0.2 --ratio 3 --out c", "ratio is 3"),
        ("choose @small @gone --out c", "gone"),
        ("correct @policy-small @small --token-ratio 3 --out c.safetensors", "need --second"),
        ("correct @policy-small @small --second @large --out c.safetensors", "needs --token-ratio"),
        (
            "correct @policy-small @small --second @large --token-ratio 0 --out c.safetensors",
            "it must be above 0",
        ),
        (
            "correct @policy-small @small --second @large --token-ratio 3"
            " --second-policy @policy-large --out c.safetensors",
            "is a folder, not the file",
        ),
    ],
)
def test_a_mistake_is_one_line(
    home: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in mistake(capsys, *words(home, line))


def test_decode_says_who_asks_a_chooser_of_models_behind_servers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(home, f"{BOTH} --ratio 0.2 --ratio 1 --out {tmp_path}/chooser"))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[chooser]\nfolder = "chooser"\nmodels = ["embedded", "http://127.0.0.1:9/v1"]\n'
    )
    capsys.readouterr()
    assert "rlbudget serve --plan" in mistake(
        capsys, "decode", "--model", "embedded", "--plan", str(plan), "1+1?"
    )


def test_a_correction_by_a_second_model_is_fitted_and_kept_with_its_policy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "correct @policy-small @small --second @large --token-ratio 0.01 --token-price 1e-4"
    main(words(home, f"{line} --second-policy @policy-large --out {tmp_path}/correction"))
    said = capsys.readouterr().out
    correction = load_correction(tmp_path / "correction")
    assert correction.second is not None
    assert correction.second.ratio == 0.01
    assert correction.second.recorded["stride"] == 8
    assert load_second_policy(tmp_path / "correction") is not None
    assert "is handed to the second model" in said
    assert "wrong answers repaired" in said
    main(words(home, f"{line} --out {tmp_path}/one.safetensors"))
    assert load_second_policy(tmp_path / "one.safetensors") is None


def test_a_second_model_that_costs_too_much_is_off_and_it_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "correct @policy-small @small --second @large --token-ratio 1e6 --token-price 1e-3"
    main(words(home, f"{line} --out {tmp_path}/off.safetensors"))
    assert capsys.readouterr().out.startswith("OFF at token price 0.001")
    assert load_correction(tmp_path / "off.safetensors").off


def test_decode_refuses_a_correction_whose_second_model_it_does_not_have(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / "model")
    capsys.readouterr()
    zeros = np.zeros(1)
    doubt = ImpactModel(("thinking_tokens",), zeros, zeros + 1, (np.ones((1, 1)),), (zeros,))
    save_correction(tmp_path / "c.safetensors", Correction(doubt, 0.5, None, 1, Refiner(2.0)))
    plan = plan_file(tmp_path / "plan.toml", policy=home / "policy-small",
                     correction={"folder": "c.safetensors"})  # fmt: skip
    line = f"decode --model {tmp_path}/model --profile embedded --plan {plan}"
    said = mistake(capsys, *words(home, line), "What is 2 + 3?")
    assert "plan.toml:2: [correction] lacks model: the second one that refines" in said
