"""KYC verification with DeepXL: manifests in, one paid call per submission, analytics out.

Data flows through `ingest`, `verify`, `flatten` and `analyze`, which hand over data only through the `lake`.
`deepxl` has everything about the API, `privacy` everything about pseudonyms. Only `orchestration/`,
`definitions.py` and `cli/` import Dagster.
"""

from kyc_pipeline import arrow_allocator as arrow_allocator

__version__ = "0.1.0"
