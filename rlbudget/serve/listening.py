"""Where the gateway listens: its address is its own from the start, and answers once it serves."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from rlbudget.errors import UserError

_BACKLOG = 2048
"""connections that wait to be taken"""


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses of a host, none of which listens yet; 0 is any free port, the same
    at all of them.

    Raises ``UserError`` for a host that is none of this machine and for a port that is taken.
    """
    if not 0 <= port <= 65_535:
        raise UserError(f"--port {port}: a port is a number from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: no address has this name") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, _, _, address in found:
            sockets.append(one := socket.socket(family, kind))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
            port = one.getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        said = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen at {shown(host, port)}: {said}") from None
    return sockets


def listen(sockets: Sequence[socket.socket]) -> None:
    """Connections are taken from now on; ``UserError`` where another process was faster."""
    for one in sockets:
        try:
            one.listen(_BACKLOG)
        except OSError as error:
            host, port = one.getsockname()[:2]
            said = (error.strerror or str(error)).lower()
            raise UserError(f"cannot listen at {shown(host, port)}: {said}") from None


def shown(host: str, port: int) -> str:
    """A host and its port as an address has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
