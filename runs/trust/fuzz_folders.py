"""Mutated files of every kind that decides: refused in one line, or nothing has changed.

Bytes are flipped, cut, moved and put in; then what a file says and the numbers in it are changed
and all digests made right, as another program could have written it. A file that is read although
its bytes differ must decide as before; one that was sealed again must be refused or be usable.

    python -m runs.trust.fuzz_folders [--bytes 400 --structured 600 --seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import random
import shutil
import struct
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rlbudget.errors import UserError
from rlbudget.policy.network import CODE, CONFIG, WEIGHTS, config_digest, read_safetensors
from rlbudget.policy.sealed import digest_of
from rlbudget.strategies.feedback.journal import read_journal
from runs.common import row, write_part
from runs.trust.kinds import KINDS, Kind

HUGE = "9" * 400
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 10**400,
    2**63, 2**64, "", "x", "\ud800", "1", "\n", [], [[]], {}, {"a": 1}, [None], [1, 2, 3],
    [0.0, 0.0], [1e-5, 1e-3], [1e-300, 1e300], [float("nan"), 1], ["thinking_tokens"], ["x"] * 99,
    {"traces": []}, {"traces": {"recorded": "x"}}, {"operating": {"token_price": "x"}},
    {"token_price": None}, {"validation": {"prices": 5}},
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Other bytes: a flip, a cut, a slice moved, dropped or put in."""
    changed, place, kind = bytearray(data), rng.randrange(len(data)), rng.randrange(7)
    if kind == 0:
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place : place + rng.randrange(1, 30)] = rng.randbytes(rng.randrange(30))
    elif kind == 3:
        piece = changed[place : place + rng.randrange(1, 60)]
        there = rng.randrange(len(data))
        changed[there:there] = piece
    elif kind == 4:
        changed[:8] = struct.pack("<Q", rng.choice([0, 1, 2**63, 2**64 - 1, 10**9, len(data)]))
    elif kind == 5:
        near = rng.randrange(min(len(data), 900))
        texts = [b"-", b"9", b"e", b'"', b"[", b"{", b"null", b"NaN", b"1e999", b"\n", b"0"]
        changed[near : near + 1] = rng.choice(texts)
    else:
        del changed[place : place + rng.randrange(1, 80)]
    return bytes(changed)


def tried(kind: Kind, place: Path, before: Any) -> tuple[str, str]:
    """What came of reading a kind: refused, same, told, other or fault, and where it failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = kind.read(place)
        except UserError as error:
            return ("fault", "more than one line") if "\n" in str(error) else ("refused", "")
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return "fault", f"{type(error).__name__} {frame.name}: {str(error)[:80]}"
    if found == before:
        return "same", ""
    if kind.name == "registry" and read_journal(place / "history.jsonl").skipped:
        return "told", ""  # damaged lines are skipped, and said to be
    return "other", ""


def _files(place: Path) -> list[Path]:
    """Those of a kind that are read: a card is for people."""
    if place.is_file():
        return [place]
    return [
        p for p in sorted(place.rglob("*")) if p.is_file() and p.name not in ("README.md", ".room")
    ]


def by_bytes(name: str, n: int, seed: int, scratch: Path) -> tuple[Counter[str], Counter[str]]:
    """``n`` mutations of each file of a kind."""
    kind, rng = KINDS[name], random.Random(f"{name} {seed}")
    source, place = scratch / "source" / name, scratch / "tried" / name
    kind.write(source, 1)
    if kind.name == "registry":
        kind.write(source, 2)
    before, came, faults = kind.read(source), Counter[str](), Counter[str]()
    for file in _files(source):
        inside, whole = file.relative_to(source), file.read_bytes()
        for _ in range(n):
            _copy(source, place)
            (place / inside if source.is_dir() else place).write_bytes(mutated(whole, rng))
            what, why = tried(kind, place, before)
            came[what] += 1
            if what in ("fault", "other"):
                faults[f"{name}: {why or 'decides otherwise'} in {inside}"] += 1
    return came, faults


def _copy(source: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copy(source, place)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value[:3])
    for key, each in inside:
        yield from _paths(each, (*path, key))


def otherwise(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same with a value, a key or a level that is odd."""
    changed = copy.deepcopy(content)
    *above, last = rng.choice([path for path in _paths(content) if path[0] != "digests"])
    there: Any = changed
    for key in above:
        there = there[key]
    kind = rng.randrange(10)
    if kind == 0:
        del there[last]
    elif kind == 1 and isinstance(there, dict):
        there["unknown"] = rng.choice(ODD)
    elif kind == 2:
        deep: Any = 1
        for _ in range(rng.choice([40, 900])):
            deep = [deep]
        there[last] = deep
    elif kind == 3 and isinstance(there[last], float | int):
        there[last] = there[last] * rng.choice([-1, 0, 1e-9, 1e9, 1e200])
    else:
        there[last] = rng.choice(ODD)
    return changed


def other_numbers(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same numbers with odd ones, of another shape or kind, or with a tensor too many."""
    changed = {name: value.copy() for name, value in tensors.items()}
    name = rng.choice(sorted(changed))
    value, kind = changed[name], rng.randrange(11)
    if kind < 5:
        odd = (np.nan, np.inf, 3e38, -3e38, 1e-45)[kind]
        value.reshape(-1)[rng.randrange(value.size)] = odd
    elif kind == 5:
        del changed[name]
    elif kind == 6:
        changed[name] = np.ascontiguousarray(value.T) if value.ndim > 1 else value[:-1]
    elif kind == 7:
        changed[name] = np.zeros(rng.choice([(), (0,), (0, 5), (1, 1, 1)]), value.dtype)
    elif kind == 8:
        changed[name] = value.astype(rng.choice([np.int64, np.float16, bool]))
    elif kind == 9:
        changed["more." + name] = changed.pop(name)
    else:
        value[...] = rng.choice([0, -1, 1e12])
    return changed


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def reseal(file: Path, rng: random.Random) -> None:
    """Change what a file says, its digest made right; the folder's digests are made right after."""
    data = file.read_bytes()
    if file.name == "history.jsonl":
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        said = otherwise({k: v for k, v in json.loads(lines[at]).items() if k != "digest"}, rng)
        lines[at] = _json({**said, "digest": _digest(said)})
        file.write_bytes(b"".join(line + b"\n" for line in lines))
    elif file.suffix == ".json":
        content = json.loads(data)
        if content.get("format") == "rlbudget-policy":
            file.write_bytes(_json(otherwise(content, rng)))
        else:
            said = otherwise({k: v for k, v in content.items() if k != "digest"}, rng)
            file.write_bytes(_json({**said, "digest": _digest(said)}))
    elif file.suffix == ".safetensors":
        tensors, about = read_safetensors(data, where=file.name)
        said = json.loads(about.get("content", "{}"))
        said.pop("digest", None)
        if said and rng.randrange(2):
            said = otherwise(said, rng)
        else:
            tensors = other_numbers(tensors, rng)
        more = (
            {"content": json.dumps({**said, "digest": _digest(said, tensors)})} if about else None
        )
        file.write_bytes(safetensors.numpy.save(tensors, metadata=more))


def _digest(content: dict[str, Any], tensors: dict[str, Any] | None = None) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        return digest_of(content, tensors)
    return "0" * 64


def digests_made_right(folder: Path) -> None:
    """Of the policies in a folder and of the chooser that names their files."""
    if not folder.is_dir():
        return
    for file in sorted(folder.rglob(CONFIG), reverse=True):  # the inner ones first
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if not isinstance(content.get("digests"), dict):
            continue
        home = file.parent
        whole = content.get("format") != "rlbudget-policy"
        names = [p.relative_to(home).as_posix() for p in _files(home) if p != file] if whole else [
            name for name in (WEIGHTS, CODE) if (home / name).is_file()]  # fmt: skip
        content["digests"] = {n: hashlib.sha256((home / n).read_bytes()).hexdigest() for n in names}
        if whole:
            content.pop("digest", None)
            content["digest"] = _digest(content)
        else:
            with contextlib.suppress(ValueError, RecursionError, TypeError):
                content["digests"][CONFIG] = config_digest(content)
        file.write_bytes(_json(content))


def structured(name: str, n: int, seed: int, scratch: Path) -> tuple[Counter[str], Counter[str]]:
    """``n`` mutations of what a kind says, all digests made right."""
    kind, rng = KINDS[name], random.Random(f"{name} sealed {seed}")
    source, place = scratch / "whole" / name, scratch / "sealed" / name
    kind.write(source, 1)
    if kind.name == "registry":
        kind.write(source, 2)
    before, came, faults = kind.read(source), Counter[str](), Counter[str]()
    for _ in range(n):
        _copy(source, place)
        files = [f for f in _files(place) if f.suffix in (".json", ".jsonl", ".safetensors")]
        if kind.name == "registry" and rng.randrange(2):
            files = [place / "history.jsonl"]
        reseal(rng.choice(files), rng)
        digests_made_right(place)
        what, why = tried(kind, place, before)
        came["usable" if what == "other" else what] += 1
        if what == "fault":
            faults[f"{name}: {why}"] += 1
    return came, faults


def rows_of(bytes_: int, structured_: int, seed: int) -> tuple[list[dict[str, Any]], Any]:
    """The two rows, and what came of each kind."""
    came: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in KINDS:
            for what, run, n in (("bytes", by_bytes, bytes_), ("sealed", structured, structured_)):
                found, faults = run(name, n, seed, Path(scratch))
                came[f"{KINDS[name].name}: {what}"] = {"came": dict(found), "faults": dict(faults)}
                print(KINDS[name].name, what, dict(found), dict(faults.most_common(9)), flush=True)
    silent = sum(one["came"].get("other", 0) for one in came.values())
    faults_ = {w: sum(c["came"].get("fault", 0) for n, c in came.items() if n.endswith(w))
               for w in ("bytes", "sealed")}  # fmt: skip
    tried_ = {w: sum(sum(c["came"].values()) for n, c in came.items() if n.endswith(w))
              for w in ("bytes", "sealed")}  # fmt: skip
    return [
        row(f"byte mutations, {bytes_} a file of {len(KINDS)} kinds",
            "0 silent differences, 0 tracebacks",
            f"{silent} silent differences, {faults_['bytes']} tracebacks in {tried_['bytes']:,}",
            silent == 0 and faults_["bytes"] == 0),
        row(f"structured mutations with digests made right, {structured_} a kind of {len(KINDS)}",
            "0 tracebacks", f"{faults_['sealed']} tracebacks in {tried_['sealed']:,}",
            faults_["sealed"] == 0),
    ], came  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=400, help="mutations a file")
    parser.add_argument("--structured", type=int, default=600, help="mutations a kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, came = rows_of(args.bytes, args.structured, args.seed)
    write_part("fuzz", "folders", rows, seed=args.seed, came=came)


if __name__ == "__main__":
    main()
