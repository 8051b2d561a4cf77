"""The report: an evaluation as one HTML file that opens from disk and asks nobody for anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlbudget.evaluate.cases import Cases
from rlbudget.files import write_text

PLACE = "/*REPORT*/null"


def write_report(
    file: Path, evaluation: Mapping[str, Any], cases: Mapping[str, Cases], relative_price: float
) -> None:
    """Write the report of an evaluation (what ``evaluation.json`` holds).

    ``cases`` are those of its policies at ``relative_price``.
    """
    data = {
        "evaluation": evaluation,
        "relative_price": relative_price,
        "cases": {name: asdict(found) for name, found in cases.items()},
    }
    # Inside a script element only "</" and "<!--" could end it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    page = (files("rlbudget.evaluate") / "report.html").read_text(encoding="utf-8")
    write_text(file, page.replace(PLACE, text))
