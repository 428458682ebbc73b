"""Which order holds, if several are judged at once. Pure.

Judging may take seconds (front_end/orders.py), and a later order may be judged first. The newest
one holds, but an order of the host's policy gives way to every order of an operator that comes
before it is judged, or is not judged when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Turn:
    """An order that is being judged. lost: another one holds."""

    policy: bool
    lost: bool = False


class Precedence:
    def __init__(self) -> None:
        self._judged: list[Turn] = []
        """In order of arrival."""

    def begin(self, *, policy: bool) -> Turn:
        """An order has come. policy: it is the policy's, not an operator's."""
        turn = Turn(policy, policy and any(not other.policy for other in self._judged))
        if not policy:
            for other in self._judged:
                other.lost |= other.policy
        self._judged.append(turn)
        return turn

    def end(self, turn: Turn) -> bool:
        """It is judged. Returns whether to carry it out; then all that are older lose."""
        place = self._judged.index(turn)
        del self._judged[place]
        if not turn.lost:
            for older in self._judged[:place]:
                older.lost = True
        return not turn.lost
