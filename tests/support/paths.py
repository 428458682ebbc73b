"""Where things lie in this repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TLS: Final = Path(__file__).with_name("tls")
"""Two certificates with their keys: first.pem, first.key.pem, second.pem, second.key.pem."""
