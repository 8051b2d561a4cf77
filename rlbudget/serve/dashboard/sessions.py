"""Who may push the buttons: a session by an admin key, and forms that nobody else can make."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

COOKIE = "rlbudget_session"
LASTS = 8 * 3600
"""seconds"""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Signed sessions: nothing is kept of them."""

    secret: bytes
    digests: Sequence[str]
    """SHA-256 of the admin keys, hexadecimal; none: nobody may steer"""

    def opened(self, key: str) -> str | None:
        """A session for a key that is known, compared in constant time; else None."""
        digest = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        known = False
        for one in self.digests:
            known |= hmac.compare_digest(digest, one)
        if not known:
            return None
        said = f"{int(time.time()) + LASTS}.{digest[:12]}"
        return f"{said}.{self._code('session', said)}"

    def admin(self, cookies: Mapping[str, str]) -> str | None:
        """What the key of a session is called; None where there is none, or it is over."""
        said, _, code = cookies.get(COOKIE, "").rpartition(".")
        until, _, name = said.partition(".")
        if not hmac.compare_digest(code.encode(), self._code("session", said).encode()):
            return None
        known = any(one[:12] == name for one in self.digests)
        return name if until.isdecimal() and int(until) > time.time() and known else None

    def token(self, cookies: Mapping[str, str]) -> str:
        """What the forms of a session hold."""
        return self._code("form", cookies.get(COOKIE, ""))

    def genuine(self, cookies: Mapping[str, str], token: str) -> bool:
        """Whether a form is of this session, in constant time."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token(cookies).encode())

    def _code(self, what: str, said: str) -> str:
        return hmac.digest(self.secret, f"{what}\0{said}".encode(errors="replace"), "sha256").hex()
