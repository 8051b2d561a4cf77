"""Where a model's weights lie and in which numbers, and what a full memory looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from rlbudget.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")

DeviceMap = str | Mapping[str, int | str]
"""Of transformers: ``"auto"`` spreads the layers over all devices, a mapping names each one's."""


def dtype_of(name: str | None) -> Any:
    """What transformers takes; None and ``"auto"``: as the weights were saved."""
    if name is None or name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UserError(f"no dtype {name!r}; there are: auto, {', '.join(DTYPES)}")
    return getattr(torch, name)


def device_of(name: str | None) -> torch.device:
    """A device that is there; None: the first CUDA device, else the CPU.

    Raises ``UserError`` for a name that is none and a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise UserError(f"no device {name!r}; there are: cpu, cuda, cuda:0, mps, xpu, auto")
    device = torch.device(name)
    if device.type != "cpu":
        kind: Any = getattr(torch, device.type)
        count = int(kind.device_count()) if kind.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"there is no device {name} on this machine: {count} of its kind")
    return device


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in words or "not enough memory" in words
    )
