"""rlbudget: learns when a reasoning model may stop thinking.

Names are imported when they are first looked at: a policy then brings numpy, ``decode``,
``record`` and ``load_model`` bring torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlbudget.errors import UserError, missing_package

if TYPE_CHECKING:
    from rlbudget.decoding.decode import decode
    from rlbudget.decoding.record import record
    from rlbudget.models import load_model
    from rlbudget.policy.folder import Policy, load_policy
    from rlbudget.policy.network import Decision
    from rlbudget.strategies.plan import load_plan
    from rlbudget.traces.trace import Trace

__all__ = [
    "Decision",
    "Policy",
    "Trace",
    "UserError",
    "__version__",
    "decode",
    "load_model",
    "load_plan",
    "load_policy",
    "record",
]

__version__ = "0.1.0"


_LATE = {
    "Decision": "rlbudget.policy.network",
    "Policy": "rlbudget.policy.folder",
    "Trace": "rlbudget.traces.trace",
    "load_policy": "rlbudget.policy.folder",
    "decode": "rlbudget.decoding.decode",
    "record": "rlbudget.decoding.record",
    "load_model": "rlbudget.models",
    "load_plan": "rlbudget.strategies.plan",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first looked at (PEP 562)."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LATE[name]), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
