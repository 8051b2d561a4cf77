"""What one request of a served engine asks for, beside its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request
from rlbudget.policy.dial import Dial


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request asks for."""

    name: str
    """of a plan"""
    dial: Dial
    off: bool = False
    thinking_budget: int | None = None
    said: Mapping[str, Any] | None = None
    """question, task, metadata and request id, as ``Request`` takes them"""

    def request(
        self, core: Core, prompt: Sequence[int] | None, room: int | None, *, shadow: bool = False
    ) -> Request:
        """The request; raises as ``Request`` does. Rules that look at the question see the
        prompt's text where the client tells no question."""  # fmt: skip
        said = dict(self.said or {})
        if "question" not in said and (core.composed is not None or core.log is not None):
            said["question"] = core.vocabulary.text(prompt or ())
        return Request(
            core, prompt=prompt, dial=self.dial, max_new_tokens=room,
            max_thinking_tokens=self.thinking_budget, off=self.off, shadow=shadow, **said,
        )  # fmt: skip
