"""What the answers of a folder of traces were compared with."""

from __future__ import annotations

from pathlib import Path

from rlbudget.traces.agreement import FIELD, FULL_DECODE
from rlbudget.traces.settings import read_settings
from rlbudget.traces.store import Folders, iter_traces


def compared_with(folders: Folders) -> str | None:
    """``FULL_DECODE`` where that is so in any of the folders; None where it is their targets.

    Raises ``UserError`` as ``iter_traces``.
    """
    several = [folders] if isinstance(folders, Path | str) else list(folders)
    for folder in several:
        said = read_settings(Path(folder)).values.get(FIELD)
        if said is None:
            said = next(iter_traces(folder)).meta.get(FIELD)
        if said == FULL_DECODE:
            return FULL_DECODE
    return None
