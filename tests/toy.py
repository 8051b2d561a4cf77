"""Runs ``runs/toy_server.py`` in a thread, on a free port."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

_FILE = Path(__file__).parent.parent / "runs" / "toy_server.py"


def _module() -> Any:
    if "toy_server" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy_server", _FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["toy_server"] = module
        spec.loader.exec_module(module)
    return sys.modules["toy_server"]


def make_toy(model: Any) -> Any:
    return _module().Toy(model)


@contextmanager
def serving(toy: Any) -> Iterator[str]:
    """The address of a running server, up to ``/v1``."""
    config = uvicorn.Config(
        _module().make_app(toy), port=0, log_level="critical", lifespan="off", ws="none"
    )
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
