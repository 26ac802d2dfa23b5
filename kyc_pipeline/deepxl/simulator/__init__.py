"""A DeepXL-compatible server for the demo, the benchmarks and the tests.

It follows the vendor's public example, keeps its records, and derives every score from a seed. `form` reads
uploads, `scores` generates results, `history` keeps them, `server` speaks HTTP, and `faults` is for tests.
The pipeline's stages import none of it.
"""

from kyc_pipeline.deepxl.simulator.server import Simulator, running_simulator

__all__ = ["Simulator", "running_simulator"]
