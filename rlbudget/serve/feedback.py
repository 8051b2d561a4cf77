"""``POST /v1/feedback``: what users say about answers, by ids that nobody can make up.

The id of an answer is the request's own and a code over it (HMAC-SHA256) by a key that all gateways
of a store share: who has the id has had the answer.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.log import Feedback, now

LONGEST_TEXT = 20_000
"""characters of an edited answer or a comment"""
_CODE = 16
"""bytes of the code"""
_FIELDS = ("id", "correct", "rating", "answer", "comment")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs the ids of requests."""

    key: bytes

    def sign(self, request_id: str) -> str:
        """The id that an answer tells."""
        return f"{request_id}.{self._code(request_id)}"

    def request_of(self, signed: str) -> str:
        """The request of an id, in constant time; ``UserError`` for an id that is not ours."""
        request_id, _, code = signed.rpartition(".")
        if not hmac.compare_digest(code.encode(errors="replace"), self._code(request_id).encode()):
            raise UserError("id: no answer of this gateway has it")
        return request_id

    def _code(self, request_id: str) -> str:
        code = _begun(self.key).copy()
        code.update(request_id.encode(errors="surrogatepass"))
        return base64.urlsafe_b64encode(code.digest()[:_CODE]).decode().rstrip("=")


@lru_cache(maxsize=8)
def _begun(key: bytes) -> hmac.HMAC:
    """Looking the digest up takes longer than signing an id."""
    return hmac.new(key, digestmod="sha256")


def feedback_of(body: Mapping[str, Any], signer: Signer) -> Feedback:
    """What a body tells; ``UserError``, in one line, for one that is no feedback."""
    if unknown := sorted(set(body) - set(_FIELDS)):
        raise UserError(f"no field {unknown[0][:80]!r}; there are: {', '.join(_FIELDS)}")
    signed = body.get("id")
    if not isinstance(signed, str):
        raise UserError("id: the feedback_id of an answer's rlbudget object")
    right, rating = body.get("correct"), body.get("rating")
    if right is not None and not isinstance(right, bool):
        raise UserError("correct: true or false")
    if rating is not None:
        number = isinstance(rating, int | float) and not isinstance(rating, bool)
        if not number or not 0 <= rating <= 1:
            raise UserError("rating: a number from 0 to 1")
    target, comment = (_text(body, name) for name in ("answer", "comment"))
    if target is not None and not target.strip():
        raise UserError("answer: the right answer, not an empty one")
    if target is not None and right:
        raise UserError("correct and answer: an answer that is correct needs no other")
    if target is None and right is None and rating is None and comment is None:
        raise UserError("say one of: correct, rating, answer, comment")
    return Feedback(
        signer.request_of(signed), now(), target, None if target is not None else right,
        None if rating is None else float(rating), comment,
    )  # fmt: skip


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise UserError(f"{name}: a text of at most {LONGEST_TEXT:,} characters")
    return value
