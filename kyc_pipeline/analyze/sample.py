"""Draws a stratified sample of submissions for manual review, with the weights that its labels will need.

Error rates over labels that came by themselves, such as complaints and chargebacks, say nothing about the
other submissions. A random sample does. Its strata are drawn with unequal shares, so that rare results are in
it: of N submissions in a stratum, in proportion to the square root of N and at least two. The weight of a
drawn submission is N over the number drawn.

A reviewer must not know what DeepXL said. So names and order of strata and rows say nothing about it.
"""

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final

from kyc_pipeline.analyze.publish import Place, open_warehouse
from kyc_pipeline.errors import UsageError
from kyc_pipeline.wording import plural

MIN_DRAWN: Final = 2
"""The least to draw of a stratum, if it has so many: one alone would not show how much they vary."""
_POPULATION: Final = """
    WITH failed AS (
        SELECT submission_id, string_agg(DISTINCT check_type, '+' ORDER BY check_type) AS checks
        FROM model_checks
        WHERE normalized_status = 'FAIL'
        GROUP BY submission_id
    )
    SELECT
        s.submission_id,
        s.verified::VARCHAR,
        coalesce(f.checks, ''),
        map_values(s.dimensions)[:-2]::VARCHAR -- without the model version
    FROM submissions AS s
    LEFT JOIN failed AS f ON f.submission_id = s.submission_id
    WHERE s.verified IS NOT NULL
    AND s.date >= coalesce($1::DATE, s.date) AND s.date <= coalesce($2::DATE, s.date)
"""


class By(StrEnum):
    """What makes the strata, besides the verdict."""

    CHECK = "check"
    """The checks that failed."""
    DIMENSION = "dimension"
    """The values of the dimensions."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One submission of a sample."""

    submission_id: str
    weight: float
    stratum: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample in random order, and what it was drawn from."""

    rows: Sequence[Drawn]
    population: int
    strata: int


def draw(
    warehouse: Place,
    n: int,
    seed: int,
    by: By | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Sample:
    """Draws `n` of the submissions with a verdict, or all if there are fewer; the same for the same input.

    `first` and `last` limit the days. Raises :class:`UsageError` if there is nothing to draw from, or if `n`
    is too small for the strata.
    """
    with open_warehouse(warehouse) as connection:
        rows = connection.execute(_POPULATION, [first, last]).fetchall()
    if not rows:
        raise UsageError("no submission has a verdict: there is nothing to draw from")
    strata: dict[tuple[str, ...], list[str]] = {}
    for submission_id, verified, checks, values in rows:
        key = (verified, *({By.CHECK: [checks], By.DIMENSION: [values]}[by] if by else []))
        strata.setdefault(key, []).append(submission_id)
    sizes = allocate({key: len(ids) for key, ids in strata.items()}, n)
    chosen = {
        key: sorted(ids, key=lambda each: _order(seed, each))[: sizes[key]] for key, ids in strata.items()
    }
    # Another sample with this seed, of other submissions, has strata of its own.
    name = _order(seed, *sorted(each for ids in chosen.values() for each in ids))[:8]
    drawn = [
        Drawn(each, len(strata[key]) / len(chosen[key]), f"{name}-{number:02d}")
        for number, key in enumerate(sorted(chosen, key=lambda key: _order(seed, *key)), 1)
        for each in chosen[key]
    ]
    drawn.sort(key=lambda row: _order(seed, row.submission_id))
    return Sample(drawn, len(rows), len(strata))


def allocate(sizes: Mapping[tuple[str, ...], int], n: int) -> dict[tuple[str, ...], int]:
    """How many to draw of each stratum, by key: `n` in all, or everything.

    Raises :class:`UsageError` if `n` is too small to draw :data:`MIN_DRAWN` of each.
    """
    drawn = {key: min(size, MIN_DRAWN) for key, size in sizes.items()}
    least = sum(drawn.values())
    if n < least:
        strata = plural(len(sizes), "stratum", "strata")
        raise UsageError(f"--n {n} is too small for {strata}: draw at least {least}, {MIN_DRAWN} of each")
    # Each further place goes to the stratum that has the fewest for the root of its size.
    queue = [(drawn[key] / math.sqrt(size), key) for key, size in sizes.items() if drawn[key] < size]
    heapq.heapify(queue)
    for _ in range(n - least):
        if not queue:
            break
        _, key = heapq.heappop(queue)
        drawn[key] += 1
        if drawn[key] < sizes[key]:
            heapq.heappush(queue, (drawn[key] / math.sqrt(sizes[key]), key))
    return drawn


def _order(seed: int, *parts: str) -> str:
    """A random sort key for these texts, 64 hexadecimal digits: the same for the same seed on any machine."""
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).hexdigest()
