"""What a check is, for every stage: its definition, its severity and its result.

`orchestration.checks` translates them to Dagster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """An error stops publication; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class CheckDefinition:
    """A check on one table or file (`asset`): what must hold, and what happens if it does not."""

    asset: str
    name: str
    severity: Severity
    description: str

    def result(self, passed: bool, description: str, **metadata: Any) -> "CheckResult":
        """The result of one run of this check."""
        return CheckResult(self, passed, description, metadata)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: `description` says what to do if it failed, `metadata` has its figures."""

    definition: CheckDefinition
    passed: bool
    description: str
    metadata: Mapping[str, Any]
    sample: Sequence[Mapping[str, str]] = ()
    """The first rows that are wrong: ids and counts only."""

    @property
    def name(self) -> str:
        """The check's name."""
        return self.definition.name

    @property
    def severity(self) -> Severity:
        """The check's severity."""
        return self.definition.severity
