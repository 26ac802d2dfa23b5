"""How much tests try that could try any number: a part of it in everyday runs, all where `CI` is set."""

import os


def tries(number: int) -> int:
    """How many examples, seeds or inputs to try: `number` in CI, a quarter of it elsewhere."""
    return number if os.environ.get("CI") else -(-number // 4)
