"""Modules that libraries import and this program hardly ever uses: loaded when they are used.

Each VM has a process of its own, so each VM pays for what a process needs. trio imports ssl, idna
and the like, and construct a debugger: together a seventh of an idle daemon's memory. What is in
the place of such a module loads it as soon as anything is looked up in it. importlib's LazyLoader
does not serve: up to Python 3.11 the next import statement loads the module.

To be imported before anything that imports one of them.
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
        if name.startswith("__"):  # the import system's questions
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        self.__dict__.update(vars(import_module(self.__name__)))
        return self.__dict__[name] if name in self.__dict__ else super().__getattribute__(name)


for _name in DEFERRED:
    sys.modules.setdefault(_name, _Deferred(_name))
