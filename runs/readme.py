"""Put the measured rows into the pages: each table between marks is that of the kept results.

A mark names results, ``<!-- results: rivals, sweep -->``, or single rows of them, counted from 1:
``<!-- results: rivals 11 -->``. Within a line ``<!-- cell: strategies, embedded: impact guard -->``
is what the one row reached whose name begins so.

python -m runs.readme            # rewrites README.md, docs/results.md and docs/strategies.md
python -m runs.readme --check    # exit status 1 if they would change
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from runs.common import RESULTS, ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "strategies.md")
MARKED = re.compile(r"<!-- results: ([a-z0-9_, ]+) -->\n(?:.*?\n)??<!-- end -->", re.DOTALL)

CELL = re.compile(r"<!-- cell: (\w+), ([^>]+?) -->[^<\n]*<!-- end -->")


def main() -> None:
    """Rewrite or check."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    fresh = {
        page: CELL.sub(_reached, MARKED.sub(lambda found: _table(found.group(1)), text))
        for page, text in texts.items()
    }
    if "--check" in sys.argv[1:]:
        sys.exit(int(fresh != texts))
    for page, text in fresh.items():
        page.write_text(text, encoding="utf-8")


def _table(names: str) -> str:
    lines = ["| what | wanted | reached | |", "|---|---|---|---|"]
    for part in names.split(","):
        for row in _rows(part):
            cells = (row["row"], row["wanted"], row["reached"], "met" if row["met"] else "not met")
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return f"<!-- results: {names} -->\n" + "\n".join(lines) + "\n<!-- end -->"


def _reached(found: re.Match[str]) -> str:
    name, begins = found.groups()
    (row,) = [row for row in _rows(name) if row["row"].startswith(begins)]
    met = "" if row["met"] else " (not met)"
    return f"<!-- cell: {name}, {begins} -->{_cell(row['reached'])}{met}<!-- end -->"


def _rows(part: str) -> list[dict[str, Any]]:
    """All rows of ``NAME``; of ``NAME NUMBER`` that one."""
    name, *number = part.split()
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = result["rows"]
    return [rows[int(number[0]) - 1]] if number else rows


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/")


if __name__ == "__main__":
    main()
