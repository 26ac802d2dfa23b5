"""KYC verification with DeepXL: manifests in, one paid call a submission, analytics out.

The folders read as the way data takes: `ingest`, `verify`, `flatten`, `analyze`. They meet only in the
`lake`. `deepxl` is all that is known of the API, `privacy` of pseudonyms. Only `assets.py`, `checks.py`,
`orchestration/`, `definitions.py` and `cli/` know Dagster.
"""

__version__ = "0.1.0"
