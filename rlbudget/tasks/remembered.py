"""Results kept for short texts only: a cache whose memory is bounded whatever is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
_LONGEST = 1000
"""characters of a text that is kept"""


def remembered(
    most: int,
) -> Callable[[Callable[Concatenate[str, Rest], Result]], Callable[Concatenate[str, Rest], Result]]:
    """Keep the last ``most`` results of a function of texts that have at most 1,000 characters
    together."""  # fmt: skip

    def decorated(
        function: Callable[Concatenate[str, Rest], Result],
    ) -> Callable[Concatenate[str, Rest], Result]:
        kept = cast(Callable[Concatenate[str, Rest], Result], lru_cache(maxsize=most)(function))

        @wraps(function)
        def answered(text: str, /, *rest: Rest.args, **named: Rest.kwargs) -> Result:
            long = len(text) + sum(len(one) for one in rest if isinstance(one, str))
            chosen = function if long > _LONGEST else kept
            return chosen(text, *rest, **named)

        return answered

    return decorated
