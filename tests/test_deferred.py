"""Modules that are loaded on first use."""

from __future__ import annotations

import subprocess
import sys

from vhost_balloon.deferred import DEFERRED


def run(text: str) -> str:
    """The output of a new interpreter that has imported the daemon."""
    program = f"import sys, vhost_balloon.__main__\n{text}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_none_of_them_is_loaded_by_the_daemon() -> None:
    loaded = f"print([name for name in {DEFERRED} if type(sys.modules[name]).__name__ == 'module'])"
    assert run(loaded) == "[]\n"


def test_each_of_them_can_be_used() -> None:
    text = f"""
import importlib, ssl, tomllib
from hashlib import sha256
from shutil import which
print(ssl.PROTOCOL_TLS_SERVER.name, tomllib.loads("a = 1"), which("no"))
print(sha256(b"").hexdigest()[:4])
print([name for name in {DEFERRED} if not dir(importlib.import_module(name))])
try:
    from base64 import no_such_name
except ImportError as error:
    print(type(error).__name__, hasattr(ssl, "nothing"))
"""
    assert run(text) == ("PROTOCOL_TLS_SERVER {'a': 1} None\ne3b0\n[]\nImportError False\n")
