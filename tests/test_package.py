"""The package: one top-level name, quick to import, no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import rlbudget

ROOT = Path(__file__).parent.parent
LIGHT = """
import json, sys, time
start = time.process_time()
import rlbudget
seconds = time.process_time() - start
policy = rlbudget.load_policy({folder!r}) if {folder!r} else None
if policy:
    policy([0.0] * len(policy.features), token_price=policy.price_range[0])
names = sorted({{name.split(".")[0] for name in sys.modules}})
print(json.dumps([seconds, names]))
"""
HEAVY = {"torch", "transformers", "gymnasium", "stable_baselines3", "matplotlib", "pyarrow",
         "safetensors", "rich", "tyro", "sklearn", "scipy"}  # fmt: skip


def imports(folder: str = "") -> tuple[float, set[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT.format(folder=folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, names = json.loads(ran.stdout)
    return seconds, set(names)


def test_importing_it_is_quick_and_loads_no_torch() -> None:
    runs = [imports() for _ in range(3)]
    assert runs[0][1] & HEAVY == set()
    assert min(seconds for seconds, _ in runs) < 0.3


def test_using_a_frozen_policy_needs_numpy_alone(tmp_path: Path) -> None:
    from frozen_nets import random_policy

    from rlbudget.policy import save_policy

    save_policy(tmp_path / "policy", random_policy())
    assert imports(str(tmp_path / "policy"))[1] & HEAVY == set()


def test_everything_it_exports_is_there() -> None:
    for name in rlbudget.__all__:
        assert getattr(rlbudget, name) is not None
    assert set(rlbudget.__all__) <= set(dir(rlbudget))


def test_functions_keep_their_names_after_their_modules_are_imported() -> None:
    import rlbudget.decode
    import rlbudget.record

    for name in ("decode", "record", "load_model"):
        assert callable(getattr(rlbudget, name))
        assert getattr(rlbudget, name).__name__ == name


def test_without_torch_a_live_decode_names_the_extra() -> None:
    code = """
import sys
sys.modules["torch"] = None
import rlbudget
try:
    rlbudget.load_model("embedded")
except rlbudget.UserError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "rlbudget[models]"' in ran.stdout, ran.stderr


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert rlbudget.__version__ == project["version"] == version("rlbudget")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("rlbudget", "envs", "agents"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(out)]
    command = [*pip, "wheel", *options, str(copy)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_has_one_top_level_name(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"rlbudget"}


def test_the_wheel_holds_every_module_of_the_checkout(wheel: list[str]) -> None:
    modules = {
        f"{prefix}/{path.relative_to(ROOT / folder)}"
        for folder, prefix in (
            ("rlbudget", "rlbudget"),
            ("envs", "rlbudget/envs"),
            ("agents", "rlbudget/agents"),
        )
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {"rlbudget/envs/__init__.py", "rlbudget/agents/__init__.py"} <= modules
    assert modules - set(wheel) == set()
    assert len(wheel) == len(set(wheel))


def test_the_wheel_holds_the_embedded_weights_and_the_types_marker(wheel: list[str]) -> None:
    embedded = ROOT / "rlbudget" / "models" / "embedded"
    files = {f"rlbudget/models/embedded/{path.name}" for path in embedded.glob("*")}
    assert {"rlbudget/py.typed", *files} <= set(wheel)
