"""Checks, for every stage: definition, severity and result. `orchestration.checks` maps them to Dagster."""

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
    """A check of one table or file (`asset`); `description` says what must hold."""

    asset: str
    name: str
    severity: Severity
    description: str

    def result(self, passed: bool, if_passed: str, if_failed: str, **metadata: Any) -> "CheckResult":
        """The result of one run of this check, with the text for its case.

        Both texts name the figure and the day; `if_failed` also says what to do.
        """
        return CheckResult(self, passed, if_passed if passed else if_failed, metadata)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    `description` says what was found, and what to do about a failure; `metadata` has the figures.
    """

    definition: CheckDefinition
    passed: bool
    description: str
    metadata: Mapping[str, Any]
    sample: Sequence[Mapping[str, str]] = ()
    """The first violations: ids and counts only."""

    @property
    def name(self) -> str:
        """The check's name."""
        return self.definition.name

    @property
    def severity(self) -> Severity:
        """The check's severity."""
        return self.definition.severity
