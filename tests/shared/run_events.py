"""The TensorBoard events of a training run."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlbudget.agents.curves import Layout


def events_of(run_dir: Path) -> EventAccumulator:
    """Of the one folder within the run's that holds any."""
    (folder,) = {file.parent for file in run_dir.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def curves_of(layout: Layout, events: EventAccumulator) -> dict[str, set[str]]:
    """Each expression of the charts -> the curves that it finds, as TensorBoard does."""
    tags = events.Tags()["scalars"]
    wanted = [one for charts in layout.values() for _, names in charts.values() for one in names]
    return {one: {tag for tag in tags if re.match(one, tag)} for one in wanted}
