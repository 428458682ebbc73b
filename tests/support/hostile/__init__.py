"""Front ends, guests and neighbours that misbehave, and what they misuse."""
