"""Figures for people in Dagster, which plots only plain numbers: so the name contains the unit."""

from collections.abc import Mapping
from typing import Any, Final

MEGABYTE: Final = 1_000_000
_COSTS: Final = ("estimated_cost", "estimated_cost_all_days", "cost_per_verified")


def shown(figures: Mapping[str, Any], currency: str) -> dict[str, Any]:
    """The figures that are not None: rates in percent, costs, and bytes in MB have two decimals.

    `LIVENESS pass_rate` 0.95536 becomes `LIVENESS pass_rate %` 95.54, and `bytes` becomes `MB`.
    """
    return dict(_shown(name, value, currency) for name, value in figures.items() if value is not None)


def _shown(name: str, value: Any, currency: str) -> tuple[str, Any]:
    if name.endswith("rate"):
        return f"{name} %", round(100 * float(value), 2)
    if name in _COSTS:
        return f"{name} {currency}", round(float(value), 2)
    if name == "bytes":
        return "MB", round(value / MEGABYTE, 2)
    return name, value
