"""Compares an answer with the request: the sizes of both documents and the tags.

A mismatch does not undo a paid call. Verify notes it in the record's `error`, flatten as an anomaly of the
verification; neither shows a value.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kyc_pipeline.deepxl.contract import FIELDS
from kyc_pipeline.vocabulary import Anomaly


class Echo(NamedTuple):
    """What an answer repeats of its request: sizes in bytes, names and values of tags.

    None if absent; that is no mismatch.
    """

    id_size: int | None
    selfie_size: int | None
    tags: Sequence[tuple[str, str | None]] | None


class _Envelope(msgspec.Struct):
    result: dict[str, Any]


_DECODER: Final = msgspec.json.Decoder(_Envelope)
_SIZES: Final = [
    next(field.names for field in FIELDS if field.path == path)
    for path in ("result.idFileSize", "result.selfieFileSize")
]


def read_echo(text: str) -> Echo:
    """The echo in an answer that meets the hard contract; values of the wrong type count as absent."""
    try:
        result = _DECODER.decode(text).result
    except (msgspec.MsgspecError, RecursionError):
        return Echo(None, None, None)
    id_size, selfie_size = (
        next((result[name] for name in names if type(result.get(name)) is int), None) for names in _SIZES
    )
    tags = result.get("tags")
    if not isinstance(tags, list):
        return Echo(id_size, selfie_size, None)
    pairs = [
        (tag["name"], tag.get("value"))
        for tag in tags
        if isinstance(tag, dict) and isinstance(tag.get("name"), str)
    ]
    return Echo(id_size, selfie_size, pairs)


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
