"""Makes Arrow allocate with jemalloc. This must run before pyarrow is imported, so `kyc_pipeline` imports it.

Arrow's default, mimalloc, keeps the memory that each thread frees: flatten would take 100 MB more for the
same CPU time (`docs/decisions/0007-the-fast-path-of-flatten.md`).
"""

import os
import platform
import sys

if sys.platform == "linux" and platform.machine() == "x86_64":  # Arrow's other wheels may lack jemalloc
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
