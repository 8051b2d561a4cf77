"""Put the measured rows into the README: each table between marks is that of the kept results.

python runs/readme.py            # rewrites README.md
python runs/readme.py --check    # exit status 1 if it would change
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs" / "results"
MARKED = re.compile(r"<!-- results: ([a-z_, ]+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Rewrite or check."""
    file = ROOT / "README.md"
    text = file.read_text(encoding="utf-8")
    fresh = MARKED.sub(lambda found: _table(found.group(1)), text)
    if "--check" in sys.argv[1:]:
        sys.exit(int(fresh != text))
    file.write_text(fresh, encoding="utf-8")


def _table(names: str) -> str:
    lines = ["| what | wanted | reached | |", "|---|---|---|---|"]
    for name in (part.strip() for part in names.split(",")):
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for row in result["rows"]:
            cells = (row["row"], row["wanted"], row["reached"], "met" if row["met"] else "not met")
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return f"<!-- results: {names} -->\n" + "\n".join(lines) + "\n<!-- end -->"


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/")


if __name__ == "__main__":
    main()
