"""Says in sentences why a VM was moved or left alone, and what the operator can do. Pure."""
