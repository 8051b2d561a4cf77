"""math-verify's verdict on an answer, run in the process of ``rlbudget.tasks.peer``."""

from __future__ import annotations

from math_verify import parse, verify


def verdict(text: str, target: str) -> int:
    """1 or 0, whatever time it takes."""
    try:
        return int(bool(verify(parse(f"${target}$"), parse(text))))
    except Exception:
        return 0
