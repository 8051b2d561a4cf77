"""The package: one top-level name, quick to import, no torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import rlbudget
from rlbudget.cli.catalogue import ENTRIES

ROOT = Path(__file__).parents[2]
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
UNLOADED = HEAVY | {"msgspec"}
"""by importing the library; what is read from a file is checked by it"""


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
    assert runs[0][1] & UNLOADED == set()
    assert min(seconds for seconds, _ in runs) < 0.3


def test_using_a_frozen_policy_needs_numpy_alone(tmp_path: Path) -> None:
    from frozen_nets import random_policy

    from rlbudget.policy.folder import save_policy

    save_policy(tmp_path / "policy", random_policy())
    assert imports(str(tmp_path / "policy"))[1] & HEAVY == set()


EXTRAS = ("orjson", "pyarrow", "rich", "tyro", "torch", "transformers", "tokenizers",
          "gymnasium", "stable_baselines3", "matplotlib", "sklearn", "aiohttp")  # fmt: skip
WITHOUT = """
import sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Absent)
"""


def without(packages: tuple[str, ...], code: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run code where these packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT.format(packages=packages) + code, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_a_plain_install_serves_a_policy(tmp_path: Path) -> None:
    from frozen_nets import random_policy

    from rlbudget.policy.folder import save_policy

    save_policy(tmp_path / "policy", random_policy(preset="free"))
    code = """
import rlbudget
from rlbudget.policy.controller import Controller
from rlbudget.signals.tokens import SIGNALS
policy = rlbudget.load_policy(sys.argv[1])
one = policy([0.0] * len(policy.features), token_price=policy.price_range[0])
controller = Controller(policy, token_price=policy.price_range[1], stride=8)
seen = [controller.at_checkpoint(dict.fromkeys(SIGNALS, 0.5), 8 * k, None) for k in (1, 2, 3)]
from rlbudget.strategies.compose import Strategy, compose
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.rules_file import load_rules
served = compose({"p": policy}, Strategy(rules=None)).serve(RequestFacts("1 + 1"))
rules = load_rules(sys.argv[2], {"p": policy})
full = rules.for_request(RequestFacts("1 + 1"))
assert not full([0.0] * len(policy.features), token_price=policy.price_range[1]).stop
print(0 <= one.stop_probability <= 1, len(seen), controller.failed)
"""
    (tmp_path / "rules.toml").write_text('rule = [{name = "a", then = "full"}]')
    ran = without(EXTRAS, code, str(tmp_path / "policy"), str(tmp_path / "rules.toml"))
    assert ran.stdout == "True 3 None\n", ran.stderr


def test_a_plain_install_saves_a_policy_and_builds_the_plan_of_an_engine() -> None:
    ran = without(
        EXTRAS,
        "import rlbudget.agents.freeze, rlbudget.decoding.core, rlbudget.decoding.decode",
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import rlbudget.traces.store", "cli"),
        ("import rlbudget; rlbudget.record", "cli"),
        ("import rlbudget; rlbudget.load_model('embedded')", "models"),
        ("import rlbudget.integrations.openai", "serve"),
    ],
)
def test_a_missing_extra_names_itself(code: str, extra: str) -> None:
    ran = without(EXTRAS, code)
    last = ran.stderr.splitlines()[-1]
    assert "UserError" in last
    assert f'is not installed; run: pip install "rlbudget[{extra}]"' in last


def test_the_command_of_a_plain_install_is_one_line() -> None:
    ran = without(EXTRAS, "import runpy; runpy.run_module('rlbudget', run_name='__main__')")
    assert ran.returncode == 2
    assert ran.stderr == ('rlbudget: tyro is not installed; run: pip install "rlbudget[cli]"\n')


def test_a_command_whose_packages_are_missing_is_one_line(tmp_path: Path) -> None:
    code = "import runpy; runpy.run_module('rlbudget', run_name='__main__')"
    packages = ("torch", "stable_baselines3", "gymnasium")
    ran = without(packages, code, "train", str(tmp_path), "--out", str(tmp_path / "run"))
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert 'pip install "rlbudget[' in ran.stderr


def test_every_command_explains_itself_without_what_trains_and_decodes() -> None:
    code = """
from rlbudget.cli.catalogue import ENTRIES
from rlbudget.cli.main import main
for name in ENTRIES:
    try:
        main([*name.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, name
"""
    extra = ("torch", "transformers", "gymnasium", "stable_baselines3", "matplotlib", "sklearn",
             "scipy", "sympy", "math_verify", "aiohttp")  # fmt: skip
    ran = without(extra, code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("usage: rlbudget ") == len(ENTRIES)


def test_a_plain_install_brings_three_packages_and_all_brings_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(wanted: list[str]) -> set[str]:
        return {re.split(r"[\[><=]", one)[0] for one in wanted} - {"rlbudget"}

    extras = project["optional-dependencies"]
    assert names(project["dependencies"]) == {"msgspec", "numpy", "safetensors"}
    assert names(extras["cli"]) == {"google-re2", "orjson", "pyarrow", "rich", "tyro"}
    (together,) = extras["all"]
    assert set(together.removeprefix("rlbudget[").removesuffix("]").split(",")) == (
        set(extras) - {"all", "dev", "ray", "smollm2"}
    )


def test_everything_it_exports_is_there() -> None:
    for name in rlbudget.__all__:
        assert getattr(rlbudget, name) is not None
    assert set(rlbudget.__all__) <= set(dir(rlbudget))


def test_functions_keep_their_names_after_their_modules_are_imported() -> None:
    import rlbudget.decoding.decode
    import rlbudget.decoding.record

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
