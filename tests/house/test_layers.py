"""Imports point down: each room may import only from those before it, and nothing goes round."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from runs.import_graph import LAYERS, ROOT, Import, circles, floor, imports, modules, room

FILES = modules()
EVERY = cache(lambda: list(imports(FILES)))
"""read at the first test that asks for them"""


def ours() -> list[Import]:
    return [one for one in EVERY() if one.imported in FILES]


def test_every_room_has_a_floor() -> None:
    known = {name for names in LAYERS for name in names}
    assert {room(name) for name in FILES} - {"rlbudget"} <= known


def test_no_import_goes_up() -> None:
    """Lazy imports and those for types included."""
    up = [
        f"{one.importer}:{one.line} imports {one.imported}"
        for one in ours()
        if room(one.importer) != "rlbudget"
        and (
            room(one.imported) == "rlbudget"
            or floor(room(one.importer)) < floor(room(one.imported))
        )
    ]
    assert up == []


def test_no_import_goes_round() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for one in ours():
        edges[one.importer].add(one.imported)
    assert circles(edges) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_few_imports_are_lazy() -> None:
    """Each for a heavy or optional package. The number may fall, it is never raised."""
    lazy = {(one.importer, one.line) for one in EVERY() if one.kind == "lazy"}
    assert len(lazy) <= 26, sorted(lazy)


def test_the_house_has_few_entries() -> None:
    kept = [p for p in (ROOT / "rlbudget").iterdir() if p.name not in ("__pycache__",)]
    assert len(kept) <= 20, sorted(p.name for p in kept)
