"""The imports of the library as a graph, lazy ones and those for types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"rlbudget": "rlbudget", "envs": "rlbudget.envs", "agents": "rlbudget.agents"}
LAYERS = (
    ("errors", "files", "console", "arrays"),
    ("signals",),
    ("tasks",),
    ("traces",),
    ("models",),
    ("policy",),
    ("envs",),
    ("agents",),
    ("evaluate",),
    ("strategies",),
    ("decoding",),
    ("integrations",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
"""Each may import from those before it; ``rlbudget`` itself, the front door, from any."""

Kind = Literal["top", "lazy", "type"]


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of ours, or of a package that is not."""

    importer: str
    imported: str
    kind: Kind
    line: int


def modules() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if folder == "rlbudget" and inside.parts[0] in ("envs", "agents"):
                continue  # links to the folders beside
            name = ".".join((package, *inside.with_suffix("").parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(files: Mapping[str, Path]) -> Iterator[Import]:
    """All imports of these modules."""
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typed = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        inside = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            kind: Kind = "type" if id(node) in typed else "lazy" if id(node) in inside else "top"
            for target in _targets(node, files):
                if target != name:
                    yield Import(name, target, kind, node.lineno)  # type: ignore[attr-defined]


def _targets(node: ast.AST, files: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in files else node.module
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name


def room(module: str) -> str:
    """The room of a module of ours: ``rlbudget.traces.store`` -> ``traces``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def floor(name: str) -> int:
    """The layer of a room."""
    return next(place for place, names in enumerate(LAYERS) if name in names)


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while True:
                part.append(stack.pop())
                if part[-1] == node:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for node in list(edges):
        if node not in index:
            visit(node)
    return found
