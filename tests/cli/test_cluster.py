"""A recording in shards: the templates for clusters, and Ray as a driver of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import ROOT

from rlbudget.cli.main import main
from rlbudget.decoding.shard import sharded, shards_for
from rlbudget.errors import UserError
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.store import load_traces
from runs.cluster.killing import PROFILE, questions
from runs.integrations.toy_script import scripted

CLUSTER = ROOT / "runs" / "cluster"
RLBUDGET = f"{sys.executable} -m rlbudget.cli.main"


def task_of(n: int) -> Task:
    return Task("made", tuple(Question(f"q{i}", f"What is {i}?", str(i)) for i in range(n)), "auto")


def test_the_template_records_every_question_once_and_goes_on(tmp_path: Path) -> None:
    """With xargs, as there is no GNU parallel on the path; one of the shards holds no question."""
    file, out = questions(tmp_path, 2), tmp_path / "shards"
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "seq", "xargs", "sed"):
        (tools / name).symlink_to(shutil.which(name) or name)
    with scripted() as url:
        words = [str(CLUSTER / "parallel.sh"), "3", "2", str(out), "--model", url, "--task",
                 str(file), *PROFILE]  # fmt: skip
        environment = {**os.environ, "RLBUDGET": RLBUDGET, "PATH": str(tools)}
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no question falls into shard" in done.stderr
    main(["traces", "merge", str(out), "--out", str(tmp_path / "all")])
    found = Counter(trace.question_id for trace in load_traces(tmp_path / "all"))
    assert found == Counter({"q0": 1, "q1": 1})


def test_the_template_says_how_it_is_used() -> None:
    for name in ("parallel.sh", "slurm.sh"):
        done = subprocess.run([CLUSTER / name, "4"], capture_output=True, text=True, timeout=240)
        assert done.returncode == 2
        assert name in done.stderr
        assert "--task" in done.stderr


def test_slurm_cuts_by_its_own_number_of_shards() -> None:
    """That of the array changes where failed tasks are run again."""
    text = (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
    array = re.search(r"#SBATCH --array=1-(\d+)", text)
    shards = re.search(r"^SHARDS=(\d+)$", text, re.MULTILINE)
    assert array is not None
    assert shards is not None
    assert array[1] == shards[1]
    assert "SLURM_ARRAY_TASK_COUNT" not in text


def test_kubernetes_runs_each_shard_of_its_completions() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (line,) = container["args"]
    assert (job["kind"], spec["completionMode"]) == ("Job", "Indexed")
    # Kubernetes makes $ of $$, and the shell of the container adds.
    said = subprocess.run(
        ["/bin/sh", "-c", line.replace("$$", "$").replace("exec rlbudget", "echo")],
        env={"JOB_COMPLETION_INDEX": "0"}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert said.split()[-2:] == ["--shard", f"1/{spec['completions']}"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # backoffLimitPerIndex asks for it


@pytest.mark.parametrize(("n", "workers"), [(0, 2), (3, 4), (40, 2), (1000, 2), (1000, 60)])
def test_no_shard_for_ray_is_empty(n: int, workers: int, tmp_path: Path) -> None:
    task = task_of(n)
    cut = shards_for(task, tmp_path / "none", workers)
    assert 1 <= cut <= 8 * workers
    assert n == 0 or all(sharded(task, (i, cut)).questions for i in range(1, cut + 1))


def test_shards_are_cut_as_before_whatever_the_workers(tmp_path: Path) -> None:
    (tmp_path / "shard-0003-of-0007").mkdir()
    assert shards_for(task_of(500), tmp_path, 12) == 7
    (tmp_path / "shard-0001-of-0009").mkdir()
    with pytest.raises(UserError, match="shards of 7 and of 9 parts"):
        shards_for(task_of(500), tmp_path, 12)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


RECORD = ["record", "--model", "embedded", "--task", "embedded", "--n", "8", "--out", "none"]


def test_ray_takes_no_shard_and_one_address(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--ray", "--shard", "1/2"], ["--ray", "a:1", "b:1"]):
        assert "--ray takes one address or none" in refused([*RECORD, *more], capsys)
    assert "at least 1" in refused([*RECORD, "--ray", "--workers", "0"], capsys)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'pip install "rlbudget[ray]"' in refused([*RECORD, "--ray"], capsys)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_records_every_question_once(tmp_path: Path) -> None:
    with scripted() as url:
        main(["record", "--model", url, "--task", str(questions(tmp_path, 12)), *PROFILE,
              "--out", str(tmp_path / "shards"), "--ray", "--workers", "2"])  # fmt: skip
    main(["traces", "merge", str(tmp_path / "shards"), "--out", str(tmp_path / "all")])
    assert len({t.question_id for t in load_traces(tmp_path / "all")}) == 12
