"""rlbudget: learns when a reasoning model may stop thinking.

Importing it needs numpy alone, and so does using a policy. ``decode``, ``record`` and
``load_model`` bring torch when they are first looked at.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rlbudget.errors import UserError, missing_package
from rlbudget.policy import Decision, Policy, load_policy
from rlbudget.traces import Trace

if TYPE_CHECKING:
    from rlbudget.decode import decode
    from rlbudget.models import load_model
    from rlbudget.record import record

__all__ = [
    "Decision",
    "Policy",
    "Trace",
    "UserError",
    "__version__",
    "decode",
    "load_model",
    "load_policy",
    "record",
]

__version__ = "0.1.0"


class _Late:
    """A function that is imported when it is first looked at.

    A module ``__getattr__`` would not do: importing the module ``rlbudget.decode`` binds its
    name here, over the function of the same name. A property of the class wins over that.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __get__(self, package: ModuleType | None, owner: type) -> Any:
        if package is None:
            return self
        try:
            return getattr(import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            said = missing_package(error)
            if said is None:
                raise
            raise said from error

    def __set__(self, package: ModuleType, value: object) -> None:
        """The import system binds the module here; the function keeps the name."""


class _Package(ModuleType):
    decode = _Late("rlbudget.decode", "decode")
    record = _Late("rlbudget.record", "record")
    load_model = _Late("rlbudget.models", "load_model")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
