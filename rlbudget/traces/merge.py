"""Several folders of traces as one: shards of a recording, each trace once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rlbudget.errors import UserError
from rlbudget.traces.columns import traces_of
from rlbudget.traces.settings import NONE, Settings, read_settings
from rlbudget.traces.shards import shards_there
from rlbudget.traces.store import PART_SIZE, TraceWriter, is_store, iter_whole_parts
from rlbudget.traces.trace import Trace, problem_of

_SAID = ("stride", "profile", "exit_text", "max_tokens", "temperature", "probe_tokens",
         "top_logprobs")  # fmt: skip
"""What traces of folders without settings say of how they were made."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did."""

    n: int
    """traces written now"""
    there: int
    """traces that the folder held already"""
    twice: int
    """traces that were in several of the folders, written once"""


def shards_of(folder: Path) -> list[Path]:
    """The folder itself, or the shards that lie in it.

    Raises ``UserError`` where one of them is missing, or they are of several cuts.
    """
    named = shards_there(folder)
    found = {path: shard for path, shard in named.items() if is_store(path)}
    # A shard that no question falls into is an empty folder.
    bare = {place for path, (place, _) in named.items() if not any(path.iterdir())}
    if is_store(folder) or not found:
        return [folder]
    cuts = {n for _, n in found.values()}
    if len(cuts) > 1:
        raise UserError(
            f"{folder} holds shards of {' and of '.join(map(str, sorted(cuts)))} parts: name those"
            " to be merged"
        )
    (n,) = cuts
    missing = sorted({*range(1, n + 1)} - {place for place, _ in found.values()} - bare)
    if missing:
        raise UserError(
            f"{folder}: shard {', '.join(f'{place}/{n}' for place in missing[:8])} is not there:"
            " record it, or name the folders to be merged"
        )
    return list(found)


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write the traces of ``folders`` to ``out``, each once; what is there already is kept.

    Parts are copied as they are, small ones put together. ``progress`` counts folders. Raises
    ``UserError`` for folders that were recorded with different settings, and for two different
    traces of one id, naming them.
    """
    if out in folders:
        raise UserError(f"{out} is one of the folders that are merged into it")
    settings = _settings_of(folders)
    seen: dict[str, Path] = {}
    twice = 0
    known: dict[str, object] = {}
    with TraceWriter(out, append=True, settings=settings) as writer:
        there = set(writer.ids)
        held = _Held(writer)
        for place, folder in enumerate(folders):
            if progress is not None:
                progress(place, len(folders))
            for part in iter_whole_parts(folder):
                if settings == NONE:
                    _check_said(traces_of(part), folder, known)
                ids = part.column("trace_id").to_pylist()
                fresh = [name not in there and name not in seen for name in ids]
                twice += sum(name in seen for name in ids)
                for name in (name for name, new in zip(ids, fresh, strict=True) if not new):
                    _check_equal(name, seen.get(name, out), folder)
                seen |= dict.fromkeys((n for n in ids if n not in seen), folder)
                held.add(part.filter(pa.array(fresh)))
        held.write()
        if progress is not None:
            progress(len(folders), len(folders))
    return Merged(held.n, len(there & seen.keys()), twice)


class _Held:
    """Parts that wait to be written together."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._parts: list[pa.Table] = []
        self.n = 0

    def add(self, part: pa.Table) -> None:
        """Take a part; written with those before where they are many enough."""
        if not part.num_rows:
            return
        if self._parts and not part.schema.equals(self._parts[0].schema):
            self.write()
        self._parts.append(part)
        self.n += part.num_rows
        if sum(one.num_rows for one in self._parts) >= PART_SIZE:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._parts:
            self._writer.add_part(pa.concat_tables(self._parts).combine_chunks())
            self._parts = []


def _settings_of(folders: Sequence[Path]) -> Settings:
    """Those that all of them were recorded with."""
    first, settings = folders[0], read_settings(folders[0])
    for folder in folders[1:]:
        other = read_settings(folder)
        names = [*settings.values, *(name for name in other.values if name not in settings.values)]
        for name in names:
            one, two = settings.values.get(name), other.values.get(name)
            if one != two or (name in settings.values) != (name in other.values):
                raise UserError(
                    f"{first} was recorded with {name} {one!r}, {folder} with {two!r}: a policy"
                    " serves one, keep them apart"
                )
    return settings


def _check_said(traces: Sequence[Trace], folder: Path, known: dict[str, object]) -> None:
    for trace in traces:
        said: Mapping[str, object] = {"model": trace.model, **trace.meta}
        for name in ("model", *_SAID):
            if known.setdefault(name, said.get(name)) != said.get(name):
                raise UserError(
                    f"{folder}: trace {trace.trace_id!r} was made with {name} {said.get(name)!r},"
                    f" those before with {known[name]!r}: a policy serves one, keep them apart"
                )


def _check_equal(name: str, before: Path, now: Path) -> None:
    """One id, one trace: a shard that was recorded twice is merged once."""
    one, other = _found(name, before), _found(name, now)
    if one != other:
        raise UserError(
            f"trace {name!r} of {now} is another than that of {before}: one id must be one trace"
        )


def _found(name: str, folder: Path) -> Trace | None:
    for part in iter_whole_parts(folder):
        if name in part.column("trace_id").to_pylist():
            place = part.column("trace_id").to_pylist().index(name)
            return traces_of(part.slice(place, 1))[0]
    return None


def validate(folders: Sequence[Path]) -> int:
    """Read all of it and check every trace; how many there are.

    Raises ``UserError`` naming the first damaged part, broken law of a trace, or id that occurs
    twice.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        for part in iter_whole_parts(folder):
            for trace in traces_of(part):
                if trace.trace_id in seen:
                    raise UserError(
                        f"{folder}: trace {trace.trace_id!r} is also in {seen[trace.trace_id]}"
                    )
                if problem := problem_of(trace):
                    raise UserError(f"{folder}: trace {trace.trace_id!r}: {problem}")
                seen[trace.trace_id] = folder
    return len(seen)
