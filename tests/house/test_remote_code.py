"""No model folder's own Python is ever run: every loader of transformers is told so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file for room in ("rlbudget", "envs", "agents", "runs", "tests")
    for file in (ROOT / room).rglob("*.py")
)  # fmt: skip


def _loads(file: Path) -> list[ast.Call]:
    """The calls of ``from_pretrained``, those of ``PeftModel`` aside: an adapter has no code."""
    return [
        node for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained" and ast.unparse(node.func.value) != "PeftModel"
    ]  # fmt: skip


def test_every_from_pretrained_says_that_remote_code_is_not_trusted() -> None:
    calls = [(file, call) for file in FILES for call in _loads(file)]
    assert len(calls) > 10
    for file, call in calls:
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        said = words.get("trust_remote_code")
        passed_on = file.name == "tokenizer.py" and said == "trust_remote_code"
        assert said == "False" or passed_on, f"{file}:{call.lineno}"


def test_nothing_says_that_remote_code_is_trusted() -> None:
    name = "trust_remote_code"
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == name:
                assert ast.unparse(node.value) != "True", f"{file}:{node.value.lineno}"


def test_the_python_of_a_model_folder_is_never_run_even_if_standard_input_says_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    import io
    import json

    from rlbudget.errors import UserError
    from rlbudget.models import load_model

    folder, proof = tmp_path / "evil", tmp_path / "RUN"
    folder.mkdir()
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.Tokenizer", None]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(str(folder))
    assert not proof.exists()
