"""Runs ``runs/integrations/toy_server.py`` in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from runs.integrations.toy_server import Toy, make_app


@contextmanager
def serving(toy: Toy) -> Iterator[str]:
    """The address of a running server, up to ``/v1``."""
    config = uvicorn.Config(make_app(toy), port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
