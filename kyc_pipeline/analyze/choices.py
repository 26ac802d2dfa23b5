"""The settings that, besides the lake, determine the content of a warehouse."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import duckdb

from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import COMPANY_TAG, SUBJECT_TAGS

_BLANKS: Final = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What Python's `strip` removes."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of one build; the defaults are those of the settings, without a price or hidden cells."""

    price_per_call: Decimal | None = None
    currency: str = "EUR"
    has_company: bool = True
    """Whether the values of the tag `companyId` are clear."""
    dimensions: tuple[str, ...] = ()
    """Tags by which tables are sliced."""
    subject_tags: tuple[str, ...] = SUBJECT_TAGS
    """Tags that identify a person: the last one, within the others."""
    min_cell: int = 1
    """Companies and values with fewer people on a day are hidden."""
    verdict_target_seconds: int = 86_400
    """Target for the time from a submission to its verdict."""
    subject_secret: str = field(default="", repr=False)
    """Key of the published pseudonyms of people, so that nobody can derive them from those of their tags."""

    @classmethod
    def of(cls, settings: Settings, subject_secret: str = "") -> "Choices":
        """The choices in `settings`."""
        return cls(
            settings.deepxl_price_per_call,
            settings.deepxl_currency,
            COMPANY_TAG in settings.kyc_clear_tags,
            settings.kyc_dimensions,
            settings.kyc_subject_tags,
            settings.kyc_min_cell,
            settings.kyc_verdict_target_seconds,
            subject_secret,
        )

    def submission_columns(self) -> Mapping[str, tuple[str, str]]:
        """Columns that models read from `lake.submissions` in place of its tags: name → (SQL, type)."""
        company = _value_of(COMPANY_TAG) if self.has_company else "NULL"
        entries = ", ".join(
            f"{literal(name)}: coalesce({_value_of(name)}, 'UNKNOWN')" for name in self.dimensions
        )
        parts = ", ".join(f"coalesce({_value_of(name)}, '')" for name in self.subject_tags)
        number = f"md5_number(to_json([{parts}])::VARCHAR)"
        person = f"CASE WHEN {_value_of(self.subject_tags[-1])} IS NOT NULL THEN {number} END"
        return {
            "person": (person, "UHUGEINT"),
            "company_id": (company, "VARCHAR"),
            "dimensions": (f"MAP {{{entries}}}", "MAP(VARCHAR, VARCHAR)"),
        }

    def set_variables(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Sets the variables that models read with `getvariable`."""
        *scope, subject_tag = self.subject_tags
        for name, kind, value in (
            ("price_per_call", "DECIMAL(18, 6)", self.price_per_call),
            ("subject_tag", "VARCHAR", subject_tag),
            ("subject_scope", "VARCHAR[]", scope),
            ("subject_secret", "VARCHAR", self.subject_secret),
            ("verdict_target_seconds", "BIGINT", self.verdict_target_seconds),
        ):
            connection.execute(f"SET VARIABLE {name} = $1::{kind}", [value])


def _value_of(tag: str) -> str:
    # As `pseudonyms` reads a value; SQL's `trim` would leave other blanks than spaces.
    return f"nullif(trim(nfc_normalize(tags[{literal(tag)}]), '{_BLANKS}'), '')"


def literal(text: str) -> str:
    """`text` as a SQL string literal."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
