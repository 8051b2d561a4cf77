"""math-verify as a second opinion beside ``rlbudget score``.

It runs in a process of its own: its time-out needs the main thread, and some of its work cannot be
interrupted.
"""

from __future__ import annotations

from rlbudget.tasks.worker import Worker

_SECONDS = 4.0
_WORKER = Worker("rlbudget.tasks.verdict:verdict", "1", "1", needs="math_verify")


def math_verify_says(text: str, target: str) -> int | None:
    """1 or 0 by math-verify's own extraction and comparison, None where it took too long.

    Raises ``UserError`` where the package is missing.
    """
    reply: int | None = _WORKER.ask(text, target, seconds=_SECONDS)
    return reply
