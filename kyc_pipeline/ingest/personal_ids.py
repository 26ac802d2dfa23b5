"""Finds submission ids that look like personal data.

An id is sent to DeepXL and shown to analysts, in logs and in Dagster, so it must not identify a person. This
finds dates of birth, and e-mail addresses in the characters that an id may have. It cannot find names, which
look like any other word.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.wording import plural

YOUNGEST: Final = 10
"""Years. A later date is hardly a date of birth; it may be the day of the submission."""
MAX_PLACES: Final = 10
_MAIL: Final = (
    r"(?i)[a-z0-9][._-]at[._-][a-z0-9-]+[._][a-z]{2,}$"
    r"|[._-](gmail|googlemail|gmx|hotmail|icloud|outlook|protonmail|yahoo)[._-][a-z]{2,}$"
    r"|[a-z0-9_-]\.(com|net|org|info|eu)$"
)
_YEAR: Final = "(?P<year>(?:19|20)[0-9]{2})"
_MONTH: Final = "(?:0[1-9]|1[0-2])"
_DAY: Final = "(?:0[1-9]|[12][0-9]|3[01])"
_BIRTHS: Final = tuple(
    f"(?:^|[^0-9]){form}(?:$|[^0-9])"
    for form in (f"{_YEAR}[-._]?{_MONTH}[-._]?{_DAY}", f"{_DAY}[-._]{_DAY}[-._]{_YEAR}")
)


@dataclass(slots=True)
class PersonalIds:
    """Rows whose submission id looks like personal data."""

    day: str
    """The day on which they were delivered."""
    count: int = 0
    places: tuple[str, ...] = ()
    """The first ones: manifest and row, never the id."""

    def add(self, rows: pa.Table) -> None:
        """Adds such rows of `rows`, a chunk of `submissions`."""
        found = rows.filter(pa.array(looks_personal(rows["submission_id"], self.day)))
        self.count += found.num_rows
        for row in found.slice(0, MAX_PLACES - len(self.places)).to_pylist():
            self.places += (f"{row['manifest']} row {row['manifest_row']}",)

    def __bool__(self) -> bool:
        return bool(self.count)

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.places) else ""
        return (
            f"{plural(self.count, 'submission id')} may be an e-mail address or have a date of birth "
            f"({', '.join(self.places)}{more}): ids are shown and sent, so deliver others"
        )


def looks_personal(ids: Any, day: str) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which ids, delivered on `day`, look like personal data."""
    latest = pa.scalar(str(date.fromisoformat(day).year - YOUNGEST))
    masks: list[Any] = [pc.match_substring_regex(ids, _MAIL)]
    for birth in _BIRTHS:
        year = pc.struct_field(pc.extract_regex(ids, birth), "year")
        masks.append(pc.less_equal(year, latest))
    found = np.zeros(len(ids), dtype=np.bool_)
    for mask in masks:
        found |= np.asarray(pc.fill_null(mask, False))
    return found
