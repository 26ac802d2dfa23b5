"""Six weeks with every oddity that moves a figure, as a built warehouse and as frames of the same rows.

Companies number their customers alike, a few submissions have no company, check types occur in two groups
and twice in one response, days are missing, unflattened, unverified, held or only rejected, and the model
changes.
"""

import datetime
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import duckdb
import pandas as pd

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS
from tests.unit.analyze.lake_maker import (
    Check,
    Submission,
    Tags,
    rejected,
    write_day,
    write_responses,
    write_submissions,
)

START: Final = datetime.date(2024, 9, 2)  # a Monday
DAYS: Final = 42
PRICE: Final = Decimal("0.35")
MISSING, UNFLATTENED, HELD, REJECTED_ONLY, UNVERIFIED = 5, 12, 20, 30, 41
UNDECIDED: Final = ("uncertain", "failed", "not_attempted")
_OUTCOMES: Final = ("completed", "refused", "quarantined")
_COMPANIES: Final = {"acme": 20, "bank": 12, "tiny": 1, None: 2}


def day(number: int) -> str:
    return (START + datetime.timedelta(days=number)).isoformat()


def _submission(rnd: random.Random, number: int) -> Submission:
    company = rnd.choices([*_COMPANIES], [*_COMPANIES.values()])[0]
    country = rnd.choices(["NL", "DE", " ", None], [6, 3, 1, 1])[0]
    customer = rnd.randrange(60)
    # The worse country has most of the timeouts.
    good = rnd.random() < (0.9 if country == "NL" else 0.6)
    is_held = number == HELD and not good and rnd.random() < 0.7
    outcome = "uncertain" if is_held else rnd.choices(_OUTCOMES, [30, 1, 1])[0]
    checks: list[Check] = []
    for name in ("LIVENESS", "FACE_MATCH", None):
        for group in ("technicalChecks", "documentChecks"):
            for _ in range(rnd.choice([0, 1, 1, 2])):
                # In one group nothing fails, so its orientation stays unknown.
                fails = not good and group == "technicalChecks" and rnd.random() < 0.6
                score = 0.4 * rnd.random() if fails else 1 - 0.5 * rnd.random() ** 2
                checks.append(
                    Check(
                        name,
                        "FAIL" if fails else rnd.choices(["PASS", "REVIEW"], [20, 1])[0],
                        rnd.choices([None, 1.0, round(score, 3)], [1, 1, 8])[0],
                        group,
                    )
                )
    tags: Tags = {}
    if company is not None:
        tags["companyId"] = company, f"p-{company}"
    if country is not None:
        tags["country"] = country, f"p-{country}"
    if customer:
        tags["customerId"] = None, f"p{customer}"
    return Submission(
        good and not any(check.normalized_status == "FAIL" for check in checks[:2]),
        checks,
        outcome,
        tags=tags,
        document=rnd.choice([None, f"{company}-{customer}", f"d{rnd.randrange(400)}"]),
        attempts=rnd.choices([1, 2, 3], [8, 1, 1])[0],
        latency_ms=None if is_held else rnd.expovariate(1 / 300),
        billable_calls=rnd.choices([1, 2], [9, 1])[0],
        manifest_tags={"customerId": f" p{customer} "} if customer else {},
        model_version=None if number < 21 else "2.0" if number > 24 or rnd.random() < 0.5 else "1.9",
    )


@dataclass(frozen=True)
class Nasty:
    """The warehouse, and its rows: all submissions, the verifications among them, and their checks."""

    connection: duckdb.DuckDBPyConnection
    path: Path
    submissions: pd.DataFrame
    verifications: pd.DataFrame
    checks: pd.DataFrame

    @classmethod
    @contextmanager
    def build(cls, folder: Path) -> Iterator["Nasty"]:
        rnd = random.Random(20240902)
        lake = Lake(str(folder / "lake"))
        rows: list[dict[str, Any]] = []
        checks: list[dict[str, Any]] = []
        for number in range(DAYS):
            date = day(number)
            if number == MISSING:
                continue
            if number == REJECTED_ONLY:
                write_submissions(lake, date, [])
                lake.write(REJECTED_SUBMISSIONS, date, [rejected(row=row) for row in range(3)])
                continue
            submissions = [_submission(rnd, number) for _ in range(60)]
            if number in {UNFLATTENED, UNVERIFIED}:
                write_submissions(lake, date, submissions)
                if number == UNFLATTENED:
                    write_responses(lake, date, submissions)
            else:
                write_day(lake, date, submissions, [rejected()] * (number % 3))
            for s in submissions:
                outcome = "not_attempted" if number == UNVERIFIED else s.outcome
                has_verdict = outcome == "completed" and number != UNFLATTENED
                calls = 0 if number == UNVERIFIED else s.billable_calls
                rows.append(
                    {
                        "date": date,
                        "id": s.id,
                        "outcome": outcome,
                        "verified": s.verified if has_verdict else None,
                        "undecided": outcome in UNDECIDED or (outcome == "completed" and not has_verdict),
                        "company": s.tags.get("companyId", ("UNKNOWN", None))[0],
                        "country": (s.tags.get("country", ("", None))[0] or "").strip() or "UNKNOWN",
                        "model_version": (s.model_version if has_verdict else None) or "UNKNOWN",
                        "customer": s.tags.get("customerId", (None, None))[1],
                        "document": s.document,
                        "attempts": 0 if number == UNVERIFIED else s.attempts,
                        "billable": calls,
                        "cost": float(PRICE) * calls,
                    }
                )
                if has_verdict:
                    checks += [
                        {
                            **rows[-1],
                            "check_group": check.group,
                            "check_type": check.type or "UNKNOWN",
                            "status": check.normalized_status,
                            "confidence": check.confidence,
                        }
                        for check in s.checks
                    ]
        choices = Choices(PRICE, dimensions=("country",))
        build(lake, folder / "nasty.duckdb", run_id="run", choices=choices)
        frame = pd.DataFrame(rows)
        with duckdb.connect(folder / "nasty.duckdb", read_only=True) as connection:
            yield cls(
                connection,
                folder / "nasty.duckdb",
                frame,
                frame[frame.verified.notna()].assign(verified=lambda f: f.verified.astype(bool)),
                pd.DataFrame(checks),
            )

    def attempts(self) -> dict[Any, list[Any]]:
        """(company, customer) → submissions in order, of those whom a response names."""
        found: dict[Any, list[Any]] = defaultdict(list)
        rows: Any = self.submissions.dropna(subset="customer").itertuples()
        for row in rows:
            found[row.company, row.customer].append(row)
        named = {(row.company, row.customer) for row in self.verifications.itertuples()}
        return {
            who: sorted(rows, key=lambda r: (r.date, r.id)) for who, rows in found.items() if who in named
        }

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query by column name, with dates as text."""
        found = self.connection.execute(sql)
        names = [column[0] for column in found.description or []]
        return [
            {
                name: value.isoformat() if isinstance(value, datetime.date) else value
                for name, value in zip(names, row, strict=True)
            }
            for row in found.fetchall()
        ]
