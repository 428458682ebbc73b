"""All targets. To add one, write a module like these and add a line below."""

from __future__ import annotations

from typing import Final

from tests.fuzz import control, http, messages, rings, state
from tests.fuzz.driver import Target

TARGETS: Final = {
    target.name: target
    for target in (
        Target("messages", messages.INVARIANT, messages.run, messages.SEEDS, messages.TOKENS),
        Target("rings", rings.INVARIANT, rings.run, rings.SEEDS, rings.TOKENS),
        Target("control", control.INVARIANT, control.run, control.SEEDS, control.TOKENS),
        Target("http", http.INVARIANT, http.run, http.SEEDS, http.TOKENS),
        Target("state", state.INVARIANT, state.run, state.SEEDS, state.TOKENS),
    )
}
