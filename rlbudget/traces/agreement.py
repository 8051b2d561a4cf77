"""What an exact match means: right by a target, or agreeing with the full decode.

Logs without targets are annotated with the full decode's own answer as the target. Their traces say
so (``compared_with`` in the folder's settings and each ``meta``), and so does all that names their
exact match. ``traces.compared`` reads it from a folder; this imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELD = "compared_with"

FULL_DECODE = "full decode"
"""the value of the field where answers were compared with that of their own full decode"""

SAID = "Exact match is agreement with the full decode's answer, as these traces have no targets."
"""What a reader of such an exact match is told."""


def agrees(said: Mapping[str, Any] | None) -> bool:
    """Whether settings, an evaluation or a certificate say so."""
    return said is not None and said.get(FIELD) == FULL_DECODE
