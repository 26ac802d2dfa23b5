"""The check of the published tables that is not about their content; the others are in `sql/checks/`."""

from datetime import UTC, datetime, timedelta
from typing import Final

from kyc_pipeline.analyze.quality import ASSET
from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATIONS
from kyc_pipeline.wording import run_again

DEADLINE_HOUR: Final = 7
"""Hour of the day (UTC) by which the day before must be published."""
YESTERDAY: Final = CheckDefinition(
    ASSET,
    "yesterday_is_included",
    Severity.WARNING,
    f"The tables include yesterday (before {DEADLINE_HOUR:02}:00 UTC, the day before). Tables that a "
    "backfill of old days published may lack it.",
)


def check_yesterday(lake: Lake, now: datetime | None = None) -> CheckResult:
    """Whether the newest day that is due is flattened, so that a publication has it."""
    day = ((now or datetime.now(UTC)) - timedelta(days=1, hours=DEADLINE_HOUR)).date().isoformat()
    return YESTERDAY.result(
        lake.exists(VERIFICATIONS, day),
        f"{day} is included",
        f"{day} is not included: run it, with {run_again(day)}",
    )
