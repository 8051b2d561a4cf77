"""Sealed files: how everything that decides is written and read.

What a file says is JSON, checked against a schema (a msgspec ``Struct``) that knows every key, with
a digest over all of it and over the numbers beside it, if there are any (``safetensors``). So a
flipped bit, a cut and an edit are noticed, and what was sealed by somebody else is still checked:
kinds, shapes and finite numbers. Nothing is unpickled. The digests do not prove who wrote a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from rlbudget.errors import UserError
from rlbudget.files import save_bytes
from rlbudget.files.folders import Get, read_folder
from rlbudget.policy.network import read_safetensors
from rlbudget.policy.parsing import parse

T = TypeVar("T")
Tensors = Mapping[str, npt.NDArray[Any]]

_DIGEST, _CONTENT = "digest", "content"


def check_kind(content: Mapping[str, Any], kind: str, version: int, name: str) -> None:
    """``ValueError`` unless a file is of this ``format`` and ``version``."""
    if content.get("format") != kind:
        raise ValueError(f"{name} is another kind of file")
    if content.get("version") != version:
        raise ValueError(
            f"{name} is of version {content.get('version')!r}, but this rlbudget reads {version}"
        )


def digest_of(content: Mapping[str, Any], tensors: Tensors | None = None) -> str:
    """sha256 of JSON-ready content, its own digest aside, in canonical JSON, and of tensors."""
    rest = {name: value for name, value in content.items() if name != _DIGEST}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted((tensors or {}).items()):
        found.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        found.update(np.ascontiguousarray(tensor).tobytes())
    return found.hexdigest()


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON with its digest. Raises ``ValueError`` for numbers that are not finite."""
    ready = json.loads(json.dumps(dict(content), allow_nan=False))
    return (json.dumps({**ready, _DIGEST: digest_of(ready)}, indent=1) + "\n").encode()


def unseal(data: bytes, kind: str, version: int, name: str) -> dict[str, Any]:
    """What ``seal`` was given, lists for tuples; ``ValueError`` for anything else."""
    content = parse(data, name)
    check_kind(content, kind, version, name)
    if content.pop(_DIGEST, None) != digest_of(content):
        raise ValueError(f"{name} was altered after it was written")
    return content


def seal_tensors(content: Mapping[str, Any], tensors: Tensors) -> bytes:
    """A safetensors file of tensors, and of what is said about them."""
    ready = json.loads(json.dumps(dict(content), allow_nan=False))
    solid = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    ready[_DIGEST] = digest_of(ready, solid)
    return bytes(save(solid, metadata={_CONTENT: json.dumps(ready)}))


def unseal_tensors(
    data: bytes, kind: str, version: int, name: str
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """What ``seal_tensors`` was given; ``ValueError`` for anything else and for numbers that are
    not finite."""  # fmt: skip
    tensors, about = read_safetensors(data, where=name)
    if _CONTENT not in about:
        raise ValueError(f"{name} is another kind of file")
    content = parse(about[_CONTENT].encode(errors="surrogatepass"), name)
    check_kind(content, kind, version, name)
    if content.pop(_DIGEST, None) != digest_of(content, tensors) or len(about) > 1:
        raise ValueError(f"{name} was altered after it was written")
    for each, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name}: {each} holds a number that is not finite")
    return content, tensors


def write_sealed(path: Path | str, data: bytes) -> None:
    """Write a sealed file atomically; ``UserError`` where it cannot be written."""
    save_bytes(Path(path), data)


def read_sealed(path: Path | str, what: str, use: Callable[[bytes], T]) -> T:
    """What ``use`` makes of the bytes of a file; ``what`` names such a file, "a blend".

    ``UserError`` in one line for a file that is missing and where ``use`` raises ``ValueError``.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {what.partition(' ')[2]} {path}")
    with refused(path, what):
        return read_folder(path.parent, lambda get: use(get(path.name)))


def within(folder: str, get: Get) -> Get:
    """Of the files of a folder within the folder that ``get`` reads."""
    return lambda name: get(f"{folder}/{name}")


@contextmanager
def refused(path: Path | str, what: str) -> Iterator[None]:
    """``UserError``, "PATH is not WHAT: why", for ``ValueError`` in it."""
    try:
        yield
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not {what}: {said}") from None
