"""Many simulations, on all cores."""

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.world import Violation, simulate, simulation

_CHUNK = 20


def violations(seeds: Sequence[int]) -> list[tuple[int, str]]:
    """The seeds that violate an invariant, with the text of the violation."""
    found = []
    with simulation():
        for seed in seeds:
            try:
                simulate(seed)
            except Violation as violation:
                found.append((seed, str(violation)))
    return found


def simulate_all(seeds: range) -> Iterator[tuple[int, str]]:
    """The violations of these seeds, as they are found."""
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield from itertools.chain.from_iterable(pool.map(violations, chunks))
