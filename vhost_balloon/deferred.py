"""Defers modules that libraries import but this program rarely uses until their first use.

Each VM has its own process and pays for its memory. trio imports ssl, idna and others, and
construct a debugger: together a seventh of an idle daemon's memory. A stand-in loads such a module
when one of its attributes is first looked up. importlib's LazyLoader does not help: up to Python
3.11 the next import statement loads the module.

Import this module before any that imports one of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

DEFERRED: Final = (
    "base64",
    "bz2",
    "glob",
    "hashlib",
    "hmac",
    "idna",
    "lzma",
    "pdb",
    "pickle",
    "shutil",
    "ssl",
    "tempfile",
    "tomllib",
)


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        self.__dict__.update(vars(import_module(self.__name__)))
        return self.__dict__[name] if name in self.__dict__ else super().__getattribute__(name)


for _name in DEFERRED:
    sys.modules.setdefault(_name, _Deferred(_name))
