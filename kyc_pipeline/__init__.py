"""KYC verification with DeepXL: manifests in, one paid call a submission, analytics out.

The folders read as the way data takes: `ingest`, `verify`, `flatten`, `analyze`. They meet only in the
`lake`. `deepxl` is all that is known of the API, `privacy` of pseudonyms. Only
`orchestration/`, `definitions.py` and `cli/` know Dagster.
"""

import os
import platform
import sys

if sys.platform == "linux" and platform.machine() == "x86_64":  # Arrow's other wheels may not have it
    # Arrow asks for it when it is loaded. Its own choice, mimalloc, keeps for each thread what that has
    # freed: flatten would take 100 MB more, or a tenth more time for page faults if it gave all back.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")

__version__ = "0.1.0"
