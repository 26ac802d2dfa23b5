"""The intervals of error rates: quantiles of beta distributions, which DuckDB lacks."""

from typing import Any, Final

import duckdb
import pyarrow as pa

_TAIL: Final = 0.025
"""Probability outside each bound of a two-sided 95% interval."""


def write_intervals(connection: duckdb.DuckDBPyConnection) -> None:
    """Fills in the bounds in `error_estimates`.

    Until then each bound is the mean of a beta distribution, whose parameters add up to the bound's size. A
    bound of 0 or 1 is final.
    """
    from scipy.special import betaincinv  # here, since few commands build a warehouse

    values: dict[str, Any] = connection.execute(
        "SELECT rowid AS row, rate_low, size_low, rate_high, size_high FROM error_estimates"
    ).fetchnumpy()
    for side, p in (("low", _TAIL), ("high", 1 - _TAIL)):
        mean, size = values[f"rate_{side}"], values[f"size_{side}"]
        is_open = (mean > 0) & (mean < 1)
        mean[is_open] = betaincinv((mean * size)[is_open], ((1 - mean) * size)[is_open], p)
    connection.register("bounds", pa.table(values))
    connection.execute(
        "UPDATE error_estimates SET rate_low = b.rate_low, rate_high = b.rate_high FROM bounds AS b"
        " WHERE error_estimates.rowid = b.row"
    )
    connection.unregister("bounds")
