"""Opens the landing zone that a setting names."""

import os
from pathlib import Path
from typing import TypeAlias

from kyc_pipeline.errors import missing_extra
from kyc_pipeline.landing.local import LocalLanding
from kyc_pipeline.landing.zone import Landing

Root: TypeAlias = str | os.PathLike[str]
"""A folder, or `s3://bucket/prefix`."""


def open_landing(landing: Root | Landing) -> Landing:
    """The landing zone at a root, or the given one if it is open already.

    Raises :class:`UsageError` if it is in S3 and s3fs is not installed.
    """
    if not isinstance(landing, str | os.PathLike):
        return landing
    if "://" not in str(landing):
        return LocalLanding(Path(landing))
    try:
        from kyc_pipeline.landing.s3 import S3Landing  # s3fs takes half a second, and is an extra
    except ImportError:
        raise missing_extra("KYC_LANDING=s3://…", "s3") from None
    return S3Landing(str(landing))
