"""What the commands take of the gateway and its store; needs ``rlbudget[serve]``."""

from __future__ import annotations

from rlbudget.serve.choosing import under_chooser
from rlbudget.serve.experiments.kept import (
    experiments,
    find,
    promote,
    results,
    start,
    stop,
)
from rlbudget.serve.experiments.status import status_json, status_table, with_usual
from rlbudget.serve.keys import digests_of, named, read_keys
from rlbudget.serve.run import serve
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.reading import prune, read_entries
from rlbudget.serve.store.store import note_event, tell

__all__ = [
    "digests_of", "experiments", "find", "named", "note_event", "open_store", "promote", "prune",
    "read_entries", "read_keys", "results", "serve", "start", "status_json", "status_table",
    "stop", "tell", "under_chooser", "with_usual",
]  # fmt: skip
