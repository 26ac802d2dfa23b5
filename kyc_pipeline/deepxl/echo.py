"""Whether a response is about what was sent: its submission, the sizes of both documents, tags and time.

Verify accepts only what can be this call's record. Flatten notes a mismatch as an anomaly of the
verification. Neither shows a value.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from kyc_pipeline.deepxl.contract import FIELDS, SECONDS_BELOW, integer
from kyc_pipeline.deepxl.jsontext import Json, NotJson, Number, Object, read_json
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Anomaly

MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far DeepXL's clock may be from ours."""
_ZONES_APART: Final = timedelta(hours=26)
"""The same for an ISO time without an offset: time zones span UTC-12 to UTC+14."""


class Echo(NamedTuple):
    """What a response repeats of its request: sizes in bytes, names and values of tags, and its time.

    None if the response lacks it. That is no mismatch, but `contradictions` requires the submission's own
    tag.
    """

    id_size: int | None
    selfie_size: int | None
    tags: Sequence[tuple[str, str | None]] | None
    at: datetime | None = None
    is_exact: bool = True
    """Whether `at` has a time zone."""


_SIZES: Final = [
    next(field.names for field in FIELDS if field.path == path)
    for path in ("result.idFileSize", "result.selfieFileSize")
]


def read_echo(text: str) -> Echo:
    """The echo in a response's text; values of the wrong type count as absent."""
    try:
        return echo_of(read_json(text))
    except NotJson:
        return Echo(None, None, None)


def echo_of(response: Json) -> Echo:
    """The echo in a parsed response. Of repeated keys the last counts, as in flatten."""
    result = _members(_members(response).get("result"))
    id_size, selfie_size = (
        next((size for name in names if (size := integer(result.get(name))) is not None), None)
        for names in _SIZES
    )
    tags = result.get("tags")
    pairs: list[tuple[str, str | None]] | None = None
    if isinstance(tags, list):
        pairs = []
        for tag in map(_members, tags):
            name, value = tag.get("name"), tag.get("value")
            if isinstance(name, str):
                pairs.append((name, value if isinstance(value, str) else None))
    at, is_exact = _time(result)
    return Echo(id_size, selfie_size, pairs, at, is_exact)


def _members(value: Json) -> dict[str, Json]:
    return dict(value.members) if isinstance(value, Object) else {}


def _time(result: Mapping[str, Json]) -> tuple[datetime | None, bool]:
    stamp, text = result.get("timestamp"), result.get("timestampISO")
    try:
        if isinstance(stamp, Number):
            seconds = float(stamp.literal)
            return datetime.fromtimestamp(seconds / 1000 if seconds >= SECONDS_BELOW else seconds, UTC), True
        if isinstance(text, str):
            at = datetime.fromisoformat(text)
            return (at, True) if at.tzinfo else (at.replace(tzinfo=UTC), False)
    except (ValueError, OverflowError, OSError):
        pass
    return None, True


def contradictions(
    echo: Echo,
    submission_id: str,
    *,
    id_size: int,
    selfie_size: int,
    tags: Mapping[str, str],
    since: datetime,
    until: datetime,
    exactly: bool = False,
) -> list[str]:
    """What shows that a response is not about this submission: fields and tags, without their values.

    `since` is the first attempt, `until` now. A tag that was not sent counts only with `exactly`, since the
    API may add some. The submission's own tag must be there.
    """
    sent = {**tags, SUBMISSION_TAG: submission_id}
    found = [
        name or "a tag that was not sent"
        for _, name in echo_mismatches(echo, id_size=id_size, selfie_size=selfie_size, tags=sent)
        if name is not None or exactly
    ]
    if echo.tags is None:
        found.append(f"tag {SUBMISSION_TAG}")
    margin = MAX_CLOCK_SKEW if echo.is_exact else _ZONES_APART
    if echo.at is not None and not since - margin <= echo.at <= until + margin:
        found.append("timestamp")
    return found


def echo_mismatches(
    echo: Echo, *, id_size: int, selfie_size: int, tags: Mapping[str, str]
) -> Iterator[tuple[Anomaly, str | None]]:
    """The differences from the sizes and `tags` sent: the anomaly and its field or tag.

    The latter is None for a tag that was not sent, since even its name may be personal data.
    """
    for field, echoed, sent in (
        ("idFileSize", echo.id_size, id_size),
        ("selfieFileSize", echo.selfie_size, selfie_size),
    ):
        if echoed is not None and echoed != sent:
            yield Anomaly.ECHO_SIZE_MISMATCH, field
    if echo.tags is None:
        return
    echoed_names = {name for name, _ in echo.tags}
    for name, value in sorted(tags.items()):
        if name not in echoed_names:
            yield Anomaly.ECHO_TAGS_MISSING, f"tag {name}"
        elif any(echoed != value for echoed_name, echoed in echo.tags if echoed_name == name):
            yield Anomaly.ECHO_TAGS_MISMATCH, f"tag {name}"
    if echoed_names - tags.keys():
        yield Anomaly.ECHO_TAGS_MISMATCH, None
