"""How many examples, seeds and inputs tests try: all with `TEST_EFFORT=full`, as in CI, else a quarter."""

import os


def tries(number: int) -> int:
    """How many examples, seeds or inputs to try: `number` with `TEST_EFFORT=full`, else a quarter of it."""
    return number if os.environ.get("TEST_EFFORT") == "full" else -(-number // 4)
