"""python -m tests.soak --minutes=20: run real and simulated guests while their daemons restart
continuously. Exits with 1 if anything is wrong. Needs root, to run systemd in its own namespaces.
"""

from __future__ import annotations

import argparse
import random

from tests.soak.run import soak


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--real", type=int, default=2, help="real guests")
    parser.add_argument("--simulated", type=int, default=20, help="simulated guests")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    return parser.parse_args()


if __name__ == "__main__":
    options = _arguments()
    print(f"seed {options.seed}", flush=True)
    outcome = soak(options.minutes * 60, options.real, options.simulated, options.seed)
    print(outcome.summary())
    raise SystemExit(1 if outcome.problems else 0)
