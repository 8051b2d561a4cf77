"""A vLLM server, started for a while; runs in vLLM's own venv (``vllm.sh``)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs.integrations.llama_process import free_port, wait_for

PROCESSOR = "rlbudget.integrations.vllm:BudgetProcessor"
START_SECONDS = 600


def environment() -> dict[str, str]:
    """Of a vLLM on this machine's CPU, where nothing else is said."""
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false",
            **os.environ}  # fmt: skip


@contextmanager
def vllm_server(
    folder: Path | str, context: int, *more: str, python: Path | str = sys.executable
) -> Iterator[str]:
    """Its root address, while it serves a model; ``more`` are arguments of its own, ``python`` that
    of its venv."""  # fmt: skip
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32",
        "--max-model-len", str(context), *more,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment()) as process:
        try:
            try:
                wait_for(address, process, START_SECONDS)
            except TimeoutError:
                raise SystemExit("the server did not start: see the lines above") from None
            yield address
        finally:
            process.terminate()
            process.wait(60)
