"""Folders: one writer at a time, whole versions alone, nothing to mend by hand after a kill."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlbudget.errors import UserError
from rlbudget.files import folders, write_bytes
from rlbudget.files.folders import Get, locked, read_folder, replace_folder

HOLD = """
import sys, time
from rlbudget.files.folders import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def both(get: Get) -> tuple[bytes, bytes]:
    return get("one"), get("within/two")


def version(number: int) -> dict[str, bytes]:
    return {"one": f"{number}".encode(), "within/two": f"{number}".encode()}


def test_a_lock_is_refused_by_naming_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "kept")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"kept: process {holder.pid} is writing here"),
            locked(tmp_path / "kept"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path / "kept"):
        pass
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_lock_can_be_waited_for_and_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path, wait=60):
                inside += 1
                most = max(most, inside)
                time.sleep(1e-4)
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys, time
from rlbudget.files.folders import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    os._exit(0)
"""
    # Its own session, so that the child can be ended with it.
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert held.wait(120) == 0
        with locked(tmp_path, wait=30):
            pass
    finally:
        os.killpg(held.pid, signal.SIGKILL)
        assert held.stdout is not None
        held.stdout.close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(UserError, match="cannot write"), locked(folder):
            pass
        with pytest.raises(UserError, match="cannot write"):
            replace_folder(folder / "policy", {"a": b""})


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder: the second is for file systems that cannot exchange."""
    if request.param == "renamed twice":
        monkeypatch.setattr(folders, "_renameat2", lambda: None)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_folder_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "kept"
    for number in (1, 2):
        replace_folder(folder, version(number))
        assert read_folder(folder, both) == (b"%d" % number,) * 2
    replace_folder(folder, {"one": b"3"})
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


@pytest.mark.usefixtures("way")
def test_readers_find_one_version_while_writers_replace_it(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    replace_folder(folder, version(0))
    done = threading.Event()

    def write(first: int) -> None:
        for number in range(first, 40, 2):
            replace_folder(folder, version(number))
        done.set()

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
    for writer in writers:
        writer.start()
    seen = []
    while not done.is_set():
        seen.append(read_folder(folder, both))
    for writer in writers:
        writer.join()
    assert all(one == two for one, two in seen)
    assert len(set(seen)) > 1


@pytest.mark.usefixtures("way")
def test_a_refused_replacement_changes_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise UserError(f"{folder} is mine")

    replace_folder(tmp_path / "kept", version(1))
    with pytest.raises(UserError, match="is mine"):
        replace_folder(tmp_path / "kept", version(2), check=refuse)
    assert read_folder(tmp_path / "kept", both) == (b"1", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


KILLED = """
import os, sys
from rlbudget.files import folders
folder, way = sys.argv[1:]
if way == "renamed twice":
    folders._renameat2 = lambda: None
STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym")

def version(number):
    return {"one": b"%d" % number, "within/two": b"%d" % number}

def killed(step):
    left = step
    def count(event, args):
        nonlocal left
        if event in STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(count)
    folders.replace_folder(folder, version(2))
    os._exit(0)

for step in range(200):
    folders.replace_folder(folder, version(1))
    child = os.fork()
    if child == 0:
        killed(step)
    ended = os.waitpid(child, 0)[1]
    print(*folders.read_folder(folder, lambda get: [get(name).decode() for name in version(1)]))
    if ended == 0:
        break
    assert os.WTERMSIG(ended) == 9
folders.replace_folder(folder, version(3))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_kill_at_any_step_leaves_the_old_or_the_new_folder(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "kept"), way]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stderr == ""
    seen = ran.stdout.splitlines()
    assert len(seen) > 10
    assert set(seen) == {"1 1", "2 2"}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def long(file: Path) -> None:
    file.touch()
    os.truncate(file, folders.LARGEST + 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: None, "one is missing"),
        (lambda file: os.mkfifo(file), "one is no plain file"),
        (lambda file: file.mkdir(), "cannot read one|one is no plain file"),
        (long, "more than"),
        (lambda file: file.symlink_to(file), "cannot read one"),
    ],
)
def test_what_is_no_file_to_read_is_one_line(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "one")
    with pytest.raises(ValueError, match=said) as found:
        read_folder(tmp_path, both)
    assert not re.search("\n", str(found.value))


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path / "none" / "within"):
        with pytest.raises(ValueError, match="no such folder"):
            read_folder(folder, both)


def test_what_a_killed_writer_of_a_file_left_is_removed_by_the_next(tmp_path: Path) -> None:
    mine, other = tmp_path / ".kept.1-00000000.tmp", tmp_path / ".kept.2-00000000.tmp"
    for path in (mine, other, tmp_path / ".kept.json.1-00000000.tmp"):
        path.write_bytes(b"half")
    with other.open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_bytes(tmp_path / "kept", b"whole")
    left = {".kept.2-00000000.tmp", ".kept.json.1-00000000.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == {"kept", *left}
    assert (tmp_path / "kept").read_bytes() == b"whole"


def test_many_writers_of_one_file_disturb_no_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_bytes(tmp_path / "kept", b"%d" % n * 999), range(100)))
    assert len(set((tmp_path / "kept").read_bytes())) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
