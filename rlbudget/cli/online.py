"""What the commands take of the gateway and its store; needs ``rlbudget[serve]``."""

from rlbudget.serve.run import serve
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.reading import prune, read_entries

__all__ = ["open_store", "prune", "read_entries", "serve"]
