"""``runs/``: how its scripts are started, what they name, and where they write."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, script_of

from rlbudget.cli.quickstart import Quickstart
from runs.common import OUT, RESULTS, command_of

RUNS = ROOT / "runs"
MODULES = sorted(file for file in RUNS.rglob("*.py") if file.name != "__init__.py")
SHELL = sorted(RUNS.rglob("*.sh"))
MAIN = 'if __name__ == "__main__":'


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def module_of(file: Path) -> str:
    return named(file).removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("file", MODULES, ids=named)
def test_a_script_says_the_command_that_starts_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if MAIN not in text:
        return
    said = ast.get_docstring(ast.parse(text)) or ""
    through = (ROOT / name for name in re.findall(r"runs/[/\w]+\.sh", said))
    commands = [said, *(shell.read_text(encoding="utf-8") for shell in through)]
    assert any(f"-m {module_of(file)}" in words for words in commands)


@pytest.mark.parametrize("file", [*MODULES, *SHELL, *PAGES.values()], ids=named)
def test_scripts_and_pages_name_scripts_that_are_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for module in re.findall(r"-m (runs\.[.a-z_]+)", text):
        assert script_of(module).is_file(), module
    for path in re.findall(r"\bruns/[/\w]+\.(?:py|sh)\b", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("file", SHELL, ids=named)
def test_a_shell_script_goes_to_the_root_of_the_checkout(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for to in re.findall(r'dirname "\$\{BASH_SOURCE\[0\]\}"\)/([./]*)', text):
        assert (file.parent / to).resolve() in (ROOT, RUNS)
    subprocess.run(["bash", "-n", str(file)], check=True, timeout=240)


def test_no_script_changes_where_modules_are_found() -> None:
    for file in MODULES:
        assert "sys.path" not in file.read_text(encoding="utf-8"), file


def test_what_scripts_share_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import runs.common; "
        "names = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "assert names - {'runs'} <= sys.stdlib_module_names, names"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


def test_a_result_says_the_command_that_makes_it_again_from_the_root() -> None:
    script = str(RUNS / "quality" / "rivals.py")
    said = command_of([script, "--traces", "/somewhere/traces", "--n", "60"])
    assert said == "python -m runs.quality.rivals --traces FOLDER --n 60"


def test_what_runs_write_is_ignored() -> None:
    assert "/out/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ROOT / Quickstart().out == OUT / "quickstart"
    assert RESULTS.is_dir()
