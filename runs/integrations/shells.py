"""The shells beside the core: how many lines they take, and which rooms decide about an end.

    python -m runs.integrations.shells

A file *decides* where it compares tokens with ends of sequence, looks for the end of the thinking,
queues an exit text or acts on a policy's stop; reading a count or masking a logit is no decision.
The places are found by name in the syntax tree, so the list says more than the number.
"""

from __future__ import annotations

import ast
from collections import defaultdict

from runs.common import ROOT, row, write_result

DECIDES = frozenset({"end_length", "gave_up_at", "begins_tool_call", "_end_thinking", "_exit"})
"""functions that find the end of a thinking or begin an exit"""
BEFORE = 3596
"""lines of the shells before the core"""


def main() -> None:
    """Count, write."""
    shells = sorted((ROOT / "rlbudget" / "integrations").glob("*.py"))
    lines = {file.name: len(file.read_text().splitlines()) for file in shells}
    rooms: dict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "rlbudget").rglob("*.py")):
        if "envs" in file.parts or "agents" in file.parts:
            continue
        found = {
            node.func.attr
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        } & DECIDES
        if found:
            rooms[file.relative_to(ROOT / "rlbudget").parts[0]].append(file.name)
    total = sum(lines.values())
    write_result(
        "shells",
        [
            row("rooms in which a stop, an exit or an end of sequence is decided", "1",
                f"{len(rooms)}: " + "; ".join(f"{n} ({', '.join(f)})" for n, f in rooms.items()),
                len(rooms) == 1),
            row(f"lines of the shells together ({BEFORE:,} before)", "<= 2,200", f"{total:,}",
                total <= 2200),
        ],
        lines=lines,
    )  # fmt: skip


if __name__ == "__main__":
    main()
