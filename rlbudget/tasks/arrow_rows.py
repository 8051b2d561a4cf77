"""Rows of Parquet files and of folders that ``datasets`` saved, read with pyarrow alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlbudget.errors import UserError

Row = dict[str, Any]

_BATCH = 256
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet file, each with its place."""
    with _damage_named(path), pq.ParquetFile(path) as file:
        yield from _rows(path, file.schema_arrow, file.iter_batches(batch_size=_BATCH))


def folder_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """The rows of one split as ``Dataset.save_to_disk`` wrote it.

    Raises ``UserError`` for a folder of several splits, naming them, and for any other folder.
    """
    if not (folder / _STATE).is_file():
        raise UserError(f"{folder}: {_what_else(folder)}")
    state = _json_file(folder / _STATE)
    try:
        names = [Path(str(entry["filename"])).name for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder / _STATE} does not say which files hold the data") from None
    number = 0
    for name in names:
        path = folder / name
        with _damage_named(path), pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_stream(source)
            for _, row in _rows(path, reader.schema, reader):
                number += 1
                yield f"{folder}:{number}", row


def _what_else(folder: Path) -> str:
    splits: list[str] = []
    with contextlib.suppress(UserError):
        if (folder / _SPLITS).is_file():
            splits = [str(name) for name in _json_file(folder / _SPLITS).get("splits", [])]
    if splits:
        return f"it holds several splits; name one: {', '.join(str(folder / s) for s in splits)}"
    return "no folder of questions: it holds no state.json, as datasets' save_to_disk writes it"


def _json_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this file: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not the JSON object it should be")
    return found


def _rows(path: Path, schema: pa.Schema, batches: Any) -> Iterator[tuple[str, Row]]:
    labels = _labels(schema)
    short = {field.name for field in schema if pa.types.is_float32(field.type)}
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for name in row.keys() & labels.keys():
                value, names = row[name], labels[name]
                known = isinstance(value, int) and 0 <= value < len(names)
                row[name] = names[value] if known else None
            for name, value in row.items():
                if name in short and value is not None:
                    row[name] = float(str(np.float32(value)))
                elif isinstance(value, Decimal):
                    row[name] = str(value)
            yield f"{path}:{number}", row


def _labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of classes, of columns that hold their numbers."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])
        features = written["info"]["features"].items()
        return {name: f["names"] for name, f in features if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot read this file: {reason}") from None
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: damaged, or no file of this kind: {reason}") from None
