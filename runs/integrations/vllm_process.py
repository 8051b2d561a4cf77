"""A vLLM server, started for a while; runs in vLLM's own venv (``vllm.sh``)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs.integrations.llama_process import free_port, wait_for

PROCESSOR = "rlbudget.integrations.vllm:BudgetProcessor"
START_SECONDS = 600


@contextmanager
def vllm_server(folder: Path | str, context: int, *more: str) -> Iterator[str]:
    """Its root address, while it serves a model; ``more`` are arguments of its own."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32",
        "--max-model-len", str(context), *more,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            try:
                wait_for(address, process, START_SECONDS)
            except TimeoutError:
                raise SystemExit("the server did not start: see the lines above") from None
            yield address
        finally:
            process.terminate()
            process.wait(60)
