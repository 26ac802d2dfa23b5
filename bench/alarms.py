"""False alarms a year, and the time until a changed rate is found, for several ways to watch weekly rates.

Simulates boards of 4 and 11 series with 60, 300 and 3,000 verifications a day, half a year of history and a
year of watching. The rates of the days are constant, or vary by 0.7 points (standard deviation). Each method
is shown with its usual limit, then with the limit at which no board has more than one false alarm a year: the
weeks until a fall of 1, 2 and 5 points is found, and a slide of 3 points in 12 weeks, which begin half a year
after the history. `windows` is what the pipeline runs (`kyc_pipeline.analyze.changes`), with the limit of
`rules.py`.
Run: `python -m bench.alarms [--years N]`. It prints two tables; the exit code is 1 if the pipeline has more
than one false alarm a year.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kyc_pipeline.analyze.changes import Weeks, find_changes
from kyc_pipeline.rules import ALARM_RATE, Z_95

Array = npt.NDArray[np.float64]
HISTORY: Final = 26
YEAR: Final = 52
VOLUMES: Final = (60, 300, 3000)
SERIES: Final = (4, 11)
DEVIATIONS: Final = (0.0, 0.007)
FALLS: Final = (
    ("1 point", 0.01, 1),
    ("2 points", 0.02, 1),
    ("5 points", 0.05, 1),
    ("3 in 12 weeks", 0.03, 12),
)
"""Name, size, and the weeks that it takes."""
FALL_AT: Final = HISTORY + 26
FOLLOWED: Final = 26
"""Weeks after a fall begins: what is not found by then counts as never found."""
RATES: Final = np.resize([0.75, 0.85, 0.9, 0.94, 0.97], max(SERIES))
SEED: Final = 20240902


@dataclass(frozen=True)
class Board:
    """What is simulated: series, verifications a day, and the standard deviation of the days' rates."""

    series: int
    volume: int
    deviation: float

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.series} × {self.volume:,}{' ±0.7' if self.deviation else ''}"

    def weeks(self, years: int, weeks: int, fall: float = 0.0, over: int = 1) -> Weeks:
        """`years` boards; from week `FALL_AT` on, the first series falls by `fall` within `over` weeks."""
        random = np.random.default_rng([SEED, self.series, self.volume, round(self.deviation * 1e4)])
        rates = np.broadcast_to(
            np.resize(RATES, self.series)[:, None, None], (years, self.series, weeks, 7)
        ).copy()
        fallen = np.clip((np.arange(weeks) - FALL_AT + 1) / over, 0, 1)
        rates[:, 0] -= fall * fallen[:, None]
        rates = np.clip(rates + random.normal(0, self.deviation, rates.shape), 0, 1)
        passed = random.binomial(self.volume, rates).astype(float)
        return weeks_of_days(passed, np.full(passed.shape, float(self.volume)))


def weeks_of_days(passed: Array, decided: Array) -> Weeks:
    """Weekly counts, from those by board, series, week and day of the week; in SQL, `rate_weeks` does it."""
    k, n = passed.sum(-1), decided.sum(-1)
    rate = np.divide(k, n, out=np.zeros_like(n), where=n > 0)[..., None]
    spread = decided * rate * (1 - rate)
    squares = np.divide((passed - decided * rate) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)
    days = (spread > 0).sum(-1).astype(float)
    return Weeks(k, n, squares.sum(-1), np.maximum(days - 1, 0))


@dataclass(frozen=True)
class Method:
    """A way to watch: its statistic by board, series and week (0: nothing to say), and its usual limit.

    The statistic is positive for a fall and negative for a rise.
    """

    name: str
    statistic: Callable[[Weeks], Array]
    usual: float


def baseline(weeks: Weeks) -> Iterator[tuple[int, Array, Array, Array, Array]]:
    """Week, passed and decided of the 26 weeks before it, their overdispersion, and z of the week."""
    for week in range(HISTORY, weeks.decided.shape[-1]):
        before = slice(week - HISTORY, week)
        k, n = weeks.passed[..., before], weeks.decided[..., before]
        p = k.sum(-1) / n.sum(-1)
        z = (k / n - p[..., None]) / np.sqrt((p * (1 - p))[..., None] / n)
        # Laney: the mean moving range of the weeks' z, over 1.128, is their standard deviation.
        sigma = np.abs(np.diff(z, axis=-1)).mean(-1) / 1.128
        now = weeks.passed[..., week] / weeks.decided[..., week]
        deviate = (p - now) / np.sqrt(p * (1 - p) / weeks.decided[..., week])
        yield week, k.sum(-1), n.sum(-1), sigma, deviate


def by_week(weeks: Weeks, values: Iterator[tuple[int, Array]]) -> Array:
    found = np.zeros(weeks.decided.shape)
    for week, value in values:
        found[..., week] = value
    return found


def weekly_test(weeks: Weeks) -> Array:
    """The week before against this one: Newcombe's interval, in units of its half width."""

    def wilson(k: Array, n: Array) -> tuple[Array, Array]:
        p, z = k / n, Z_95
        centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)

    def values() -> Iterator[tuple[int, Array]]:
        for week in range(HISTORY, weeks.decided.shape[-1]):
            (k1, k2), (n1, n2) = (
                (counts[..., week - 1], counts[..., week]) for counts in (weeks.passed, weeks.decided)
            )
            (low1, high1), (low2, high2) = wilson(k1, n1), wilson(k2, n2)
            fall = k1 / n1 - k2 / n2
            towards = np.hypot(k1 / n1 - low1, high2 - k2 / n2)
            away = np.hypot(high1 - k1 / n1, k2 / n2 - low2)
            yield week, fall / np.where(fall > 0, towards, away)

    return by_week(weeks, values())


def shewhart(weeks: Weeks) -> Array:
    """p-chart: the week's z against the binomial limits of the 26 weeks before."""
    return by_week(weeks, ((week, z) for week, _, _, _, z in baseline(weeks)))


def laney(weeks: Weeks) -> Array:
    """p′-chart: that z over the standard deviation of the weeks' z."""
    return by_week(weeks, ((week, z / np.maximum(sigma, 1)) for week, _, _, sigma, z in baseline(weeks)))


def ewma(weeks: Weeks) -> Array:
    """Exponentially weighted mean (weight 0.2) of Laney's z, in its own standard deviations."""
    z, mean, found = laney(weeks), np.zeros(weeks.decided.shape[:-1]), np.zeros(weeks.decided.shape)
    for week in range(HISTORY, z.shape[-1]):
        mean = 0.8 * mean + 0.2 * z[..., week]
        found[..., week] = mean / math.sqrt(0.2 / 1.8 * (1 - 0.8 ** (2 * (week - HISTORY + 1))))
    return found


def cusum(weeks: Weeks) -> Array:
    """Cumulative sums of Laney's z beyond 0.5, upwards and downwards; the larger one."""
    z, found = laney(weeks), np.zeros(weeks.decided.shape)
    falls = rises = np.zeros(z.shape[:-1])
    for week in range(HISTORY, z.shape[-1]):
        falls = np.maximum(falls + z[..., week] - 0.5, 0)
        rises = np.maximum(rises - z[..., week] - 0.5, 0)
        found[..., week] = np.where(falls >= rises, falls, -rises)
    return found


def confidence_sequence(weeks: Weeks) -> Array:
    """Anytime-valid: -log10 of the p-value by a normal mixture, of all weeks since the start against before.

    The mixture is tuned to ten weeks; the variance has Laney's overdispersion.
    """
    k0, n0, sigma = next((k, n, s) for _, k, n, s, _ in baseline(weeks))
    p0 = (k0 + 1) / (n0 + 2)
    unit = p0 * (1 - p0) * np.maximum(sigma, 1) ** 2
    k, n = np.zeros_like(k0), np.zeros_like(k0)
    found = np.zeros(weeks.decided.shape)
    for week in range(HISTORY, weeks.decided.shape[-1]):
        k, n = k + weeks.passed[..., week], n + weeks.decided[..., week]
        fall = p0 - k / n
        precision = 1 / (unit * (1 / n + 1 / n0))
        tuned = 1 / (unit * (1 / (10 * weeks.decided[..., week]) + 1 / n0))
        evidence = (fall * precision) ** 2 / (2 * (precision + tuned)) - np.log1p(precision / tuned) / 2
        found[..., week] = np.sign(fall) * np.maximum(evidence, 0) / math.log(10)
    return found


METHODS: Final = (
    Method("weekly test", weekly_test, 1.0),
    Method("Shewhart p-chart", shewhart, 3.0),
    Method("Laney p′-chart", laney, 3.0),
    Method("EWMA", ewma, 2.86),
    Method("CUSUM", cusum, 5.0),
    Method("confidence sequence", confidence_sequence, -math.log10(0.05)),
)
WINDOWS: Final = "windows"


def false_alarms(statistic: Array, limit: float) -> float:
    """Alarms a year and board: runs of weeks beyond the limit count once."""
    beyond = np.abs(statistic) > limit
    begins = beyond & ~np.concatenate([np.zeros_like(beyond[..., :1]), beyond[..., :-1]], axis=-1)
    return float(begins.sum() / len(statistic))


def weeks_until(found: npt.NDArray[np.bool_]) -> str:
    """Median weeks until the first alarm, and the share found, from flags by board and week after a shift."""
    hit = found.any(-1)
    weeks = np.where(hit, found.argmax(-1) + 1, np.inf)
    median = float(np.quantile(weeks, 0.5, method="inverted_cdf"))
    return f"{'–' if math.isinf(median) else f'{median:.0f}'} ({hit.mean():.0%})"


def main() -> int:
    """Prints the tables; exit code 1 if the pipeline's alarms miss their target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=200, help="simulated years of each board")
    years = parser.parse_args().years
    boards = [Board(*choice) for choice in itertools.product(SERIES, VOLUMES, DEVIATIONS)]
    quiet = {board: board.weeks(years, HISTORY + YEAR) for board in boards}
    statistics = {m.name: {board: m.statistic(weeks) for board, weeks in quiet.items()} for m in METHODS}
    usual: dict[str, list[float]] = {
        m.name: [false_alarms(statistics[m.name][board], m.usual) for board in boards] for m in METHODS
    }
    usual[WINDOWS] = [_false_changes(weeks, years) for weeks in quiet.values()]
    print("False alarms a year of a board (series × verifications a day, daily deviation in points)\n")
    _table(
        ["method", *(board.name for board in boards)],
        [[name, *(f"{v:.2f}" for v in values)] for name, values in usual.items()],
    )
    limits = {m.name: _limit(statistics[m.name]) for m in METHODS}
    falling = [Board(max(SERIES), volume, deviation) for volume in VOLUMES for deviation in DEVIATIONS]
    print(
        "\nMedian weeks until a fall of one series is found (share found in half a year), at a limit with at"
    )
    print("most one false alarm a year on each board above\n")
    rows: list[list[str]] = []
    for board in falling:
        fallen = [board.weeks(years, FALL_AT + FOLLOWED, fall, over) for _, fall, over in FALLS]
        for method in METHODS:
            limit = limits[method.name]
            found = [method.statistic(weeks)[:, 0, FALL_AT:] > limit for weeks in fallen]
            rows.append([board.name, method.name, f"{limit:.2f}", *map(weeks_until, found)])
        found = [_falls(weeks, years) for weeks in fallen]
        rows.append([board.name, WINDOWS, f"{ALARM_RATE}", *map(weeks_until, found)])
    _table(["board", "method", "limit", *(name for name, _, _ in FALLS)], rows)
    worst = max(usual[WINDOWS])
    if worst > 1:
        print(f"\nmissed: {worst:.2f} false alarms a year")
    return int(worst > 1)


def _limit(statistics: dict[Board, Array]) -> float:
    """The lowest limit with at most one false alarm a year on each board."""
    low, high = 0.0, 100.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if max(false_alarms(statistic, middle) for statistic in statistics.values()) > 1:
            low = middle
        else:
            high = middle
    return high


def _false_changes(weeks: Weeks, years: int) -> float:
    return sum(change.last >= HISTORY for change in find_changes(weeks)) / years


def _falls(weeks: Weeks, years: int) -> npt.NDArray[np.bool_]:
    """Whether, by board and week after the shift, the pipeline has seen the first series fall."""
    found = np.zeros((years, FOLLOWED), dtype=bool)
    for change in find_changes(weeks):
        if change.series == 0 and change.effect < 0 and change.last >= FALL_AT:
            found[change.board, max(change.seen - FALL_AT, 0) :] = True
    return found


def _table(head: list[str], rows: list[list[str]]) -> None:
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    sys.exit(main())
