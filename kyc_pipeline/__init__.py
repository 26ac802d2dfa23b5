"""KYC verification with DeepXL: manifests in, one paid call a submission, analytics out.

The folders read as the way data takes: `ingest`, `verify`, `flatten`, `analyze`. They meet only in the
`lake`. `deepxl` is all that is known of the API, `privacy` of pseudonyms. Only
`orchestration/`, `definitions.py` and `cli/` know Dagster.
"""

from kyc_pipeline import arrow_allocator as arrow_allocator

__version__ = "0.1.0"
