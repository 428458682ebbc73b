"""The simulated worlds: hosts, guests and what they need, as drawn for each scenario and seed."""
