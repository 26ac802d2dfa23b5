"""How much tests try that could try any number: a part of it in everyday runs, all in CI."""

import os


def tries(number: int) -> int:
    """How many examples, seeds or inputs to try: `number` with `TEST_EFFORT=full`, else a quarter of it."""
    return number if os.environ.get("TEST_EFFORT") == "full" else -(-number // 4)
