"""Server-sent events from blocks cut at any byte, in linear time and bounded memory."""

from __future__ import annotations

import re

import msgspec

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class Events:
    """The data of a stream of server-sent events.

    ``most`` bytes are kept of one event; ``ValueError`` for a longer one.
    """

    __slots__ = ("_after_return", "_data", "_kind", "_most", "_rest", "_size", "done")

    def __init__(self, most: int = 1 << 20) -> None:
        self._most = most
        self._rest = bytearray()
        self._after_return = False
        self._data: list[bytes] = []
        self._size = 0
        self._kind = b""
        self.done = False
        """whether ``[DONE]`` was said: what comes after it is nothing"""

    def feed(self, block: bytes) -> list[bytes]:
        """The JSON texts of the events that end in this block."""
        if self._after_return or self._data or self._kind or b"\r" in block or b"\n" not in block:
            return self._lines(block)
        # Nearly all events are one line of data: these are cut out whole.
        *events, rest = (bytes(self._rest) + block).split(b"\n\n")
        self._rest.clear()
        found: list[bytes] = []
        for event in events:
            if event[:6] == b"data: " and b"\n" not in event:
                self._size = len(event) - 5 + 64
                if self._size > self._most:
                    raise ValueError(f"one event is longer than {self._most:,} bytes")
                self._data.append(event[6:])
                self._end(found)
                self._size = 0
            elif event and (event[:1] != b":" or b"\n" in event):  # no comment alone
                found += self._lines(event + b"\n\n")
        return found + self._lines(rest)

    def _lines(self, block: bytes) -> list[bytes]:
        if self._after_return and block[:1] == b"\n":
            block = block[1:]
        self._after_return = block.endswith(b"\r")
        found: list[bytes] = []
        first, *others = _LINE_END.split(block)
        self._rest += first
        for other in others:
            line, self._rest = bytes(self._rest), bytearray(other)
            self._take(line, found)
        if len(self._rest) + self._size > self._most:
            raise ValueError(f"one event is longer than {self._most:,} bytes")
        return found

    def close(self) -> list[bytes]:
        """What stands before an end without an empty line."""
        return self.feed(b"\n\n")

    def _take(self, line: bytes, found: list[bytes]) -> None:
        if not line:
            if self._data:
                self._end(found)
            self._kind, self._size = b"", 0
            return
        name, _, value = line.removeprefix(_BOM).partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 64
            if self._size > self._most:
                raise ValueError(f"one event is longer than {self._most:,} bytes")
        elif name == b"event":
            self._kind = value.strip()[:32]

    def _end(self, found: list[bytes]) -> None:
        data, self._data = self._data, []
        # Some servers leave the empty line out: then each line is a whole object.
        whole = len(data) > 1 and _object(data[0]) is not None
        for part in data if whole else [b"\n".join(data)]:
            text = part.strip()
            self.done = self.done or text == b"[DONE]"
            if self.done or not text or text == b"null":
                continue
            if self._kind == b"error" and "error" not in (_object(text) or {"error": 0}):
                text = b'{"error":' + text + b"}"
            found.append(text)


def _object(text: bytes) -> dict[str, object] | None:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
