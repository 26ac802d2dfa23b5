"""`make simulate`: simulates many seeds, on all cores, or one seed with its log."""

import argparse
import sys
import time

from tests.simulation.many import simulate_all
from tests.simulation.world import Violation, simulate, simulation


def main() -> int:
    """The command line. Exit code 1: a seed violates an invariant."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="simulate the seeds from 0 on")
    parser.add_argument("--seed", type=int, help="simulate this one and print what happens")
    given = parser.parse_args()
    if given.seed is not None:
        with simulation():
            try:
                print("\n".join(simulate(given.seed).kernel.log))
            except Violation as violation:
                print(violation)
                return 1
        return 0
    started = time.monotonic()
    for _, text in simulate_all(range(given.seeds)):
        print(text)
        return 1
    print(f"{given.seeds} seeds hold ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
