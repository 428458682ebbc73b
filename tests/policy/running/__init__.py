"""Tests of what carries the rule out: the ticks, the operator, misbehaving hosts and VMs."""
