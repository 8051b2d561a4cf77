"""The llama-server of this checkout, started for a while."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs.common import ROOT

BINARY = ROOT / ".llama/build/bin/llama-server"
START_SECONDS = 300
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
"""A cache in full precision: with the default f16 a token in a thousand may differ."""


@contextmanager
def llama_server(model: Path, *, context: int, threads: int = 1, slots: int = 1) -> Iterator[str]:
    """Its address, while it runs with ``model``, a GGUF file; ``slots`` requests at once, each of
    them with all of the ``context``."""
    if not BINARY.is_file():
        raise SystemExit(
            "llama-server is not built: run runs/integrations/llama_server.sh (about 10 minutes)"
        )
    port = free_port()
    command = [str(BINARY), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(context * slots), "-np", str(slots), "-t", str(threads)]
    command += ["--cache-ram", "0", *EXACT]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, START_SECONDS)
            yield address
        except TimeoutError:
            log.seek(0)
            raise SystemExit(log.read().decode(errors="replace")[-2000:]) from None
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    """A port that nobody listens at, and that no client is given in the meantime: systems give
    clients those from 32768 on."""  # fmt: skip
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """``TimeoutError`` if it does not come up, or ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(address)
