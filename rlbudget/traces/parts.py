"""A Parquet part as bytes that say of themselves whether they are whole.

A part is an ordinary Parquet file. Between its last page and its footer stand the 32 bytes of the
sha256 of all the rest, footer included: readers of Parquet pass over them, and no bit of a part
can change unseen. A part is checked before any of it is parsed, then against the layout of
``traces.columns`` and the laws of ``traces.laws``.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlbudget.errors import UserError
from rlbudget.traces.columns import FORMAT_KEY, FORMAT_VERSION, SETTINGS_KEY, layout_problem
from rlbudget.traces.laws import problem_of_part
from rlbudget.traces.settings import Settings

_MAGIC = b"PAR1"
_DIGEST = hashlib.sha256().digest_size
_ENDING = 4 + len(_MAGIC)
"""bytes of the footer's length and of the mark after it"""


def sealed(part: pa.Table) -> bytes:
    """A part as the bytes of its file."""
    sink = pa.BufferOutputStream()
    # Signals hardly ever repeat, so a dictionary of them would be slower and larger. Nobody reads
    # statistics.
    pq.write_table(
        part, sink, compression="zstd", use_dictionary=False, write_statistics=False
    )  # fmt: skip
    whole: bytes = sink.getvalue().to_pybytes()
    at = _footer_of(whole)
    return whole[:at] + hashlib.sha256(whole).digest() + whole[at:]


def read_part(
    path: Path,
    settings: Settings,
    columns: Collection[str] | None = None,
    *,
    without: Collection[str] = (),
) -> pa.Table:
    """A part of a folder with these settings: its ids and the ``columns``, or all but ``without``.

    Raises ``UserError`` for a part that is damaged, foreign, of other settings, or that breaks a
    law of traces.
    """
    with damage_named(path):
        content = path.read_bytes()
        _check_whole(content)
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            schema = file.schema_arrow
            _check_version(path, schema.metadata or {})
            if problem := layout_problem(schema):
                raise ValueError(problem)
            if (schema.metadata.get(SETTINGS_KEY) or b"").decode() != settings.digest:
                raise UserError(
                    f"{path} was recorded under other settings than its folder says: record it"
                    " again into a folder of its own"
                )
            wanted = {"trace_id", *(schema.names if columns is None else columns)} - {*without}
            names = [name for name in schema.names if name in wanted]
            part = file.read(columns=names, use_threads=False)
        if problem := problem_of_part(part, stride=settings.stride):
            raise UserError(f"{path}: {problem}")
        return part


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """``UserError`` that names the part for whatever its contents may raise."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is not a whole part of a trace store ({reason}): delete it and run the"
            " command that made it again, rlbudget record … --resume"
        ) from error


def _check_version(path: Path, metadata: dict[bytes, bytes]) -> None:
    version = metadata.get(FORMAT_KEY)
    if version is None:
        raise ValueError("it was not written by rlbudget")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: written by another version of rlbudget (store format"
            f" {version.decode(errors='replace')[:20]}); use that version or record again"
        )


def _footer_of(content: bytes) -> int:
    """Where the footer of a Parquet file begins."""
    length = int.from_bytes(content[-_ENDING : -len(_MAGIC)], "little")
    return len(content) - _ENDING - length


def _check_whole(content: bytes) -> None:
    if content[-len(_MAGIC) :] != _MAGIC or content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is no Parquet file, or is cut off")
    at = _footer_of(content)
    if at < _DIGEST:
        raise ValueError("it is cut off")
    view = memoryview(content)
    hashed = hashlib.sha256(view[: at - _DIGEST])
    hashed.update(view[at:])
    if not hmac.compare_digest(hashed.digest(), content[at - _DIGEST : at]):
        raise ValueError("its contents are not those that this version of rlbudget wrote")
