"""A DeepXL-compatible server on loopback, for the demo, the benchmarks and the tests.

It answers as the vendor's public example does, keeps its records, and derives every score from a seed.
`form` reads uploads, `scores` invents results, `records` keeps them, `server` speaks HTTP, and `faults`
is for tests only. Nothing of it is imported by the pipeline's stages.
"""

from kyc_pipeline.deepxl.simulator.server import Simulator, running_simulator

__all__ = ["Simulator", "running_simulator"]
