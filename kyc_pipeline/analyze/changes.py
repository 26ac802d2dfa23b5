"""Finds lasting and passing changes of weekly rates, with few false alarms over a whole board of series.

Each complete week, the last `ALARM_WINDOWS` weeks of every series are compared with the
`ALARM_BASELINE_WEEKS` before them. Rates vary more from day to day than chance explains, so the variance is
that of the days within the weeks (a quasi-binomial model). Benjamini and Hochberg's procedure over all series
and window lengths keeps the chance of any false alarm of a board in a week at `ALARM_RATE`, however many
series it has.

After an alarm, its weeks leave the baseline, and windows begin after it: one bad week has no echo. A change
that lasts `ALARM_NEW_NORMAL` weeks becomes the new baseline. `bench/alarms.py` measures false alarms and
delays of this code.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt

from kyc_pipeline.rules import (
    ALARM_BASELINE_WEEKS,
    ALARM_MIN_EFFECT,
    ALARM_MIN_WEEKS,
    ALARM_NEW_NORMAL,
    ALARM_RATE,
    ALARM_WINDOWS,
    LOW_N,
    Z_95,
)

Array: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
_erfc: Final = np.vectorize(math.erfc, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class Weeks:
    """Weekly counts by board, series and week; a week without data has 0 `decided`.

    `excess` is the chi-squared of the days' rates within the week, with `freedom` degrees of freedom.
    """

    passed: Array
    decided: Array
    excess: Array
    freedom: Array


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window against its baseline, by board and series."""

    p: Array
    effect: Array
    low: Array
    high: Array
    rate: Array
    baseline_rate: Array
    decided: Array
    baseline_decided: Array
    dispersion: Array


@dataclass(frozen=True, slots=True)
class Change:
    """An alarm: `first` to `last` are its weeks, `seen` is the week that first raised it.

    The comparison is that of its strongest window.
    """

    board: int
    series: int
    first: int
    last: int
    seen: int
    effect: float
    low: float
    high: float
    p: float
    rate: float
    baseline_rate: float
    decided: int
    baseline_decided: int
    dispersion: float


def find_changes(weeks: Weeks, alarm_rate: float = ALARM_RATE) -> list[Change]:
    """The changes of all boards, by board, series and time."""
    boards, series, count = weeks.decided.shape
    has_data = weeks.decided > 0
    clean = has_data.copy()
    restart = np.zeros((boards, series), dtype=int)  # the first week of the baseline
    resume = np.zeros((boards, series), dtype=int)  # the first week of a window
    latest: dict[tuple[int, int], Change] = {}
    found: list[Change] = []
    for week in range(count):
        compared = [_compare(weeks, clean, has_data, restart, resume, week, size) for size in ALARM_WINDOWS]
        p = np.stack([comparison.p for comparison in compared], axis=-1)
        alarms = _benjamini_hochberg(p, alarm_rate)
        alarms &= np.abs(np.stack([c.effect for c in compared], axis=-1)) >= ALARM_MIN_EFFECT
        for board, one in np.argwhere(alarms.any(-1)):
            at = int(board), int(one)
            best = int(np.argmin(np.where(alarms[at], p[at], 2)))
            change = _change(compared[best], at, week - ALARM_WINDOWS[best] + 1, week)
            before = latest.get(at)
            if before and before.last == change.first - 1 and before.effect * change.effect > 0:
                found.remove(before)
                change = _joined(before, change)
            clean[at][change.first : week + 1] = False
            resume[at] = week + 1
            if change.last - change.first + 1 >= ALARM_NEW_NORMAL:
                restart[at] = change.first
                clean[at][change.first : week + 1] = has_data[at][change.first : week + 1]
                latest.pop(at, None)
            else:
                latest[at] = change
            found.append(change)
    return sorted(found, key=lambda change: (change.board, change.series, change.first))


def write_changes(connection: duckdb.DuckDBPyConnection) -> None:
    """Fills the table `found_changes` with the changes in `rate_weeks`, board by board."""
    boards: dict[str, list[dict[str, Any]]] = {}
    names = ("series", "week", "passed", "decided", "excess", "freedom")
    for board, *row in connection.execute(
        f"SELECT board, {', '.join(names)} FROM rate_weeks ORDER BY ALL"
    ).fetchall():
        boards.setdefault(board, []).append(dict(zip(names, row, strict=True)))
    for board, rows in boards.items():
        for change in changes_of_board(rows):
            marks = ", ".join(f"${number}" for number in range(1, len(change) + 2))
            columns = ", ".join(["board", *change])
            connection.execute(
                f"INSERT INTO found_changes ({columns}) VALUES ({marks})", [board, *change.values()]
            )


def changes_of_board(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The changes of one board, as rows of `found_changes`.

    A row of `rows` has `series` (a number), `week` (its Monday), `passed`, `decided`, `excess` and `freedom`.
    """
    if not rows:
        return []
    first = min(row["week"] for row in rows)
    last = max(row["week"] for row in rows)
    names = sorted({row["series"] for row in rows})
    index = {name: position for position, name in enumerate(names)}
    shape = 1, len(names), (last - first).days // 7 + 1
    columns = {name: np.zeros(shape) for name in ("passed", "decided", "excess", "freedom")}
    for row in rows:
        for name, values in columns.items():
            values[0, index[row["series"]], (row["week"] - first).days // 7] = row[name]
    step = datetime.timedelta(days=7)
    return [
        {
            "series": names[change.series],
            "from_date": first + step * change.first,
            "to_date": first + step * change.last + datetime.timedelta(days=6),
            "effect": change.effect,
            "effect_low": change.low,
            "effect_high": change.high,
            "p": change.p,
            "rate": change.rate,
            "baseline_rate": change.baseline_rate,
            "decided": change.decided,
            "baseline_decided": change.baseline_decided,
            "dispersion": change.dispersion,
        }
        for change in find_changes(Weeks(**columns))
    ]


def _compare(
    weeks: Weeks,
    clean: Flags,
    has_data: Flags,
    restart: npt.NDArray[np.int_],
    resume: npt.NDArray[np.int_],
    week: int,
    size: int,
) -> Comparison:
    first = week - size + 1
    begin = max(first - ALARM_BASELINE_WEEKS, 0)
    shape = restart.shape
    if first <= 0:
        nothing = np.full(shape, np.nan)
        return Comparison(np.ones(shape), *[nothing] * 8)
    position = np.arange(begin, first)
    base = clean[..., begin:first] & (position >= restart[..., None])

    def in_base(values: Array) -> Array:
        return np.asarray((values[..., begin:first] * base).sum(-1))

    k, n = (values[..., first : week + 1].sum(-1) for values in (weeks.passed, weeks.decided))
    m, j = in_base(weeks.decided), in_base(weeks.passed)
    freedom = in_base(weeks.freedom)
    dispersion = np.maximum(in_base(weeks.excess) / np.maximum(freedom, 1), 1)
    is_tested = (
        (base.sum(-1) >= ALARM_MIN_WEEKS)
        & (first >= np.maximum(resume, restart))
        & has_data[..., first : week + 1].all(-1)
        & (n >= LOW_N)
    )
    # Anscombe's transform: the variance of a rate near 0 or 1 does not depend on the rate.
    distance = _angle(k, n) - _angle(j, m)
    t = distance / np.sqrt(dispersion * (1 / (n + 0.5) + 1 / (m + 0.5)))
    # Wallace's normal deviate of Student's t, because the dispersion is an estimate; without one it is 1.
    z = np.where(
        freedom > 0,
        (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t**2 / np.maximum(freedom, 1))),
        np.abs(t),
    )
    p = np.where(is_tested, _erfc(z / math.sqrt(2)), 1.0)
    rate, baseline_rate = (
        np.divide(a, b, out=np.full(shape, np.nan), where=b > 0) for a, b in ((k, n), (j, m))
    )
    half = Z_95 * np.sqrt(dispersion * (_variance(k, n) + _variance(j, m)))
    effect = rate - baseline_rate
    return Comparison(
        p,
        effect,
        np.maximum(effect - half, -1),
        np.minimum(effect + half, 1),
        rate,
        baseline_rate,
        n,
        m,
        dispersion,
    )


def _angle(k: Array, n: Array) -> Array:
    return np.asarray(2 * np.arcsin(np.sqrt((k + 0.375) / (n + 0.75))))


def _variance(k: Array, n: Array) -> Array:
    """The variance of the rate k / n, with one success and one failure added (Agresti and Caffo)."""
    return (k + 1) * (n - k + 1) / (n + 2) ** 3


def _benjamini_hochberg(p: Array, rate: float) -> Flags:
    """Which of a board's tests are significant; `p` is by board, series and window. A p of 1 is no test."""
    flat = p.reshape(len(p), -1)
    tests = (flat < 1).sum(-1, keepdims=True)
    ordered = np.sort(flat, axis=-1)
    ranks = np.arange(1, flat.shape[-1] + 1)
    passes = (ordered <= rate * ranks / np.maximum(tests, 1)) & (ordered < 1)
    cut = np.where(passes, ordered, -1.0).max(-1, keepdims=True)
    return np.asarray((flat <= cut).reshape(p.shape))


def _change(compared: Comparison, at: tuple[int, int], first: int, last: int) -> Change:
    return Change(
        *at,
        first,
        last,
        last,
        float(compared.effect[at]),
        float(compared.low[at]),
        float(compared.high[at]),
        float(compared.p[at]),
        float(compared.rate[at]),
        float(compared.baseline_rate[at]),
        int(compared.decided[at]),
        int(compared.baseline_decided[at]),
        float(compared.dispersion[at]),
    )


def _joined(before: Change, change: Change) -> Change:
    """One change from two that follow one another, with the stronger one's comparison."""
    stronger = min(before, change, key=lambda one: one.p)
    return replace(stronger, first=before.first, last=change.last, seen=before.seen)
