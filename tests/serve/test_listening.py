"""`rlbudget serve` as a process: where it listens, and what it prints from its start to its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rlbudget.errors import UserError
from rlbudget.serve.listening import bound, listen, shown
from runs.common import ROOT

POLICY = ROOT / "runs" / "models" / "embedded" / "policy_0"


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: .*in use"):
            bound("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("no-such-host.invalid", 0, "--host no-such-host.invalid: no address has this name"),
        ("x" * 300, 0, "no address has this name"),
        ("192.0.2.1", 0, "cannot listen at 192.0.2.1:0"),
        ("127.0.0.1", 70_000, "--port 70000: a port is a number from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(host: str, port: int, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        bound(host, port)


def test_any_free_port_is_the_same_at_all_addresses_of_a_host() -> None:
    sockets = bound("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        port = sockets[0].getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody is kept waiting by a gateway to come
            socket.create_connection(("localhost", port), timeout=5)
        listen(sockets)
        socket.create_connection(("localhost", port), timeout=5).close()
    finally:
        for one in sockets:
            one.close()


def test_an_address_is_shown_as_a_client_writes_it() -> None:
    assert shown("::1", 80) == "[::1]:80"
    assert shown("localhost", 80) == "localhost:80"


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rlbudget", "serve", "--model", "embedded", "--policy",
               str(POLICY), "--port", "0", *arguments]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_start_says_each_thing_once_and_the_port_it_has(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line.rstrip())
            if "serving at" in line:
                break
        address = re.search(r"http://127\.0\.0\.1:[1-9]\d*/v1", said[-1])
        assert address is not None, said
        assert httpx.get(f"{address[0]}/models").json()["data"][0]["id"] == "embedded"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=240)[::-1]
        assert process.returncode == 0
        said += rest.splitlines()
    assert not [line for line in said if "alembic" in line]
    plain = [re.sub(r"^(\S+ \S+ rlbudget\S*|rlbudget:) ", "", line) for line in said]
    assert len(set(plain)) == len(plain), said
