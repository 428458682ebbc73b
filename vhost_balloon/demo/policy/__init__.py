"""Shows the policy: the same play of three guests twice, without it and with it."""
