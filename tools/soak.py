"""Many runs while everything goes wrong by lot, and the count of what was leaked, started twice or lost: none.

    python tools/soak.py [--runs 200] [--seed N] [--real-every 10]

The seed is printed first; the same seed draws the same faults. Exit code 1 where a promise was broken.
"""

import argparse
import random
import sys
from importlib import import_module
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def main() -> int:
    """Soak, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311 - no secret
    parser.add_argument("--real-every", type=int, default=10, help="each so manieth run is of real processes")
    given = parser.parse_args()
    print(f"seed: {given.seed}", flush=True)
    sys.path.insert(0, str(PROJECT))
    soak = import_module("tests.crash.soak")
    figures, took = soak.timed(lambda: soak.soak(given.seed, given.runs, every=given.real_every, tell=print))
    print("\n".join((*figures.lines(), took)))
    return 0 if figures.clean else 1


if __name__ == "__main__":
    sys.exit(main())
