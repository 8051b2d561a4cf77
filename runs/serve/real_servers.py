"""Real servers of the SmolLM2 reasoner on loopback, for what is measured through the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlbudget.models.smollm2 import smollm2_folder
from runs.common import ROOT
from runs.integrations.llama_process import llama_server
from runs.integrations.vllm_process import vllm_server
from runs.models.smol_gguf import write_gguf

SERVERS = ("llama-server", "vLLM")
CONTEXT = 1024
AT_ONCE = {"llama-server": 1, "vLLM": 16}
"""requests that a server takes at once"""


@contextmanager
def real_server(name: str, folder: Path, *more: str) -> Iterator[str]:
    """One of ``SERVERS`` by its address, up to ``/v1``; ``more`` are arguments of vLLM's."""
    if name == "vLLM":
        python = ROOT / ".venv-vllm" / "bin" / "python"
        if not python.exists():
            raise SystemExit("vLLM is not installed: bash runs/integrations/vllm.sh makes its venv")
        most = ("--max-num-seqs", str(AT_ONCE[name]))
        with vllm_server(smollm2_folder(), CONTEXT, *most, *more, python=python) as root:
            yield f"{root}/v1"
        return
    file = folder / "model.gguf"
    write_gguf(smollm2_folder(), file)
    with llama_server(file, context=CONTEXT) as root:
        yield f"{root}/v1"
