"""The rules by name. A run needs a new one each time."""

from __future__ import annotations

from importlib import import_module

from tests.policy.rule import Rule

RULES = {
    "none": "rivals.none:Nothing",
    "static": "rivals.static:Static",
    "proxmox": "rivals.proxmox:Proxmox",
    "mom": "rivals.mom:Mom",
    "ours": "ours:Ours",
    "oracle": "rivals.oracle:Oracle",
}
"""Module and class, below tests.policy. In the order of the tables."""


def new_rule(name: str) -> Rule:
    """A rule that has not ticked yet."""
    module, _, of = RULES[name].partition(":")
    rule: Rule = getattr(import_module(f"tests.policy.{module}"), of)()
    return rule
