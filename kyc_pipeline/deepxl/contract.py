"""The contract with DeepXL: what a response must have, what it should have, and what is never stored.

`receive` checks a body against the hard contract: a `result` object, an integer `verificationId`, a boolean
`verified`. The rest is the soft contract: the shape of a response (`Result`), its fields and known variations
(`FIELDS`), and the table of statuses. Deviations are stored and counted, never rejected. `redact` cuts
biometric geometry out of a body before it is stored.
"""

import functools
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.inspect import is_struct_type

from kyc_pipeline.deepxl.call_errors import ContractBroken, NotAResponse
from kyc_pipeline.deepxl.jsontext import (
    STRING,
    Json,
    NotJson,
    Number,
    Object,
    cut_depth,
    escape_surrogates,
    read_json,
    unquote,
)
from kyc_pipeline.vocabulary import TECHNICAL_CHECKS, CheckStatus, DriftKind

VERSION: Final = "1"
"""Version of the soft contract, in the footers of flattened tables; increment it with every change below."""

CHECK_TYPES: Final = frozenset({"FACE_MATCH", "LIVENESS", "ID_QUALITY"})

_STATUS_WORDS: Final = {
    CheckStatus.PASS: "PASS PASSED CLEAR APPROVED VERIFIED SUCCESS",
    CheckStatus.FAIL: "FAIL FAILED REJECTED DECLINED UNVERIFIED",
    CheckStatus.REVIEW: "REVIEW WARN WARNING CONSIDER CAUTION SUSPECTED",
    CheckStatus.NOT_EVALUATED: (
        "NOT_EVALUATED NOT_APPLICABLE NOT_PROCESSED NOT_EXECUTED SKIPPED NOT_AVAILABLE"
    ),
    CheckStatus.ERROR: "ERROR TECHNICAL_ERROR",
    CheckStatus.PENDING: "PENDING IN_PROGRESS PROCESSING",
}
STATUSES: Final = MappingProxyType(
    {word: status for status, words in _STATUS_WORDS.items() for word in words.split()}
)
"""Normalised status by received status, trimmed and in upper case; any other is UNKNOWN."""


def normalize_status(status: str | None) -> CheckStatus:
    """The normalised status; UNKNOWN for None and for a status not in the table."""
    return STATUSES.get((status or "").strip().upper(), CheckStatus.UNKNOWN)


class JsonType(StrEnum):
    """JSON types. An integer has 64 bits, and its literal has neither a fraction nor an exponent."""

    OBJECT = "object"
    LIST = "list"
    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True)
class Field:
    """A known field of a response. In an annotation of `Result` it adds what the type cannot say.

    `path`: keys joined by dots; `[]` is any position of a list, `*` any other key of an object.
    `aliases`: other names of the field. `unless`: siblings that may stand in for it.
    `odd`: whether a value of the right kind is drift all the same, of the kind `drift`.
    """

    path: str = ""
    kind: JsonType = JsonType.OBJECT
    required: bool = True
    aliases: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    odd: Callable[[Json], bool] | None = None
    drift: DriftKind = DriftKind.TYPE_MISMATCH

    @property
    def names(self) -> tuple[str, ...]:
        """The key and its aliases."""
        return (self.path.rpartition(".")[2], *self.aliases)


def is_unit_interval(value: Json) -> bool:
    """Whether `value` is a number from 0 to 1, both included (NaN is not)."""
    return isinstance(value, Number) and 0 <= float(value.literal) <= 1


SECONDS_BELOW: Final = 10**11
"""A timestamp below this is in seconds (up to the year 5138); one from this to 1000 times this is in
milliseconds (1973 to 5138)."""


def integer(value: Json) -> int | None:
    """The value of a 64-bit integer literal; None for anything else."""
    return _identifier(value.literal) if isinstance(value, Number) else None


Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Numeric: TypeAlias = int | float


class Check(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One technical check."""

    type: Annotated[
        str,
        Field(
            aliases=("checkType",),
            odd=lambda value: value not in CHECK_TYPES,
            drift=DriftKind.UNKNOWN_TYPE,
        ),
    ]
    status: Annotated[
        str,
        Field(
            odd=lambda value: normalize_status(str(value)) is CheckStatus.UNKNOWN,
            drift=DriftKind.UNKNOWN_STATUS,
        ),
    ]
    confidence: Annotated[
        Numeric | UnsetType,
        Field(odd=lambda value: not is_unit_interval(value), drift=DriftKind.CONFIDENCE_OUT_OF_RANGE),
    ] = UNSET
    """Some of the simulator's responses lack it, as real ones do; that is drift."""
    details: str


class ModelResults(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The groups of checks."""

    technical_checks: list[Check]


class Tag(msgspec.Struct, forbid_unknown_fields=True):
    """A tag. Requests carry tags as one object, responses as a list."""

    name: str
    value: str


class File(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A document as DeepXL stored it. `timestamp`: seconds since 1970."""

    category: str
    file_name: str
    file_size: Int64
    content_type: str
    timestamp: Numeric
    timestamp_iso: str = msgspec.field(name="timestampISO")
    url: str


class Result(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """A verification, in the order of the vendor's example: the only definition of a response's shape.

    The soft contract (`FIELDS`), flatten's Arrow schema and the simulator's records are derived from it.
    `timestamp`: seconds since 1970.
    """

    verification_id: Int64
    id_file_type: str
    id_file_name: Annotated[str, Field(aliases=("idName",))]
    id_file_size: Annotated[Int64, Field(aliases=("idSize",))]
    selfie_file_type: str
    selfie_file_name: Annotated[str, Field(aliases=("selfieName",))]
    selfie_file_size: Annotated[Int64, Field(aliases=("selfieSize",))]
    model: str
    model_version: Annotated[str | UnsetType, Field(required=False)] = UNSET
    verified: bool
    model_results: Annotated[ModelResults, Field(unless=(TECHNICAL_CHECKS,))]
    timestamp: Numeric
    timestamp_iso: str = msgspec.field(name="timestampISO")
    tags: list[Tag]
    files: list[File]

    def tag(self, name: str) -> str | None:
        """The value of the tag called `name`."""
        return next((tag.value for tag in self.tags if tag.name == name), None)


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a response."""

    result: Result


_KINDS: Final[dict[object, JsonType]] = {
    str: JsonType.STRING,
    int: JsonType.INTEGER,
    Numeric: JsonType.NUMBER,
    bool: JsonType.BOOLEAN,
}


def kind_of(annotation: Any) -> tuple[JsonType, Any]:
    """The JSON type of an annotation of `Result`, and a list's item type or an object's class."""
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if UnsetType in get_args(bare):
        bare = functools.reduce(operator.or_, (part for part in get_args(bare) if part is not UnsetType))
    if get_origin(bare) is list:
        return JsonType.LIST, get_args(bare)[0]
    return (JsonType.OBJECT, bare) if is_struct_type(bare) else (_KINDS[bare], None)


def _fields(path: str, annotation: Any, **changes: Any) -> Iterator[Field]:
    """The field at `path` and all fields below it."""
    known = next((note for note in get_args(annotation) if isinstance(note, Field)), Field())
    kind, inner = kind_of(annotation)
    yield replace(known, path=path, kind=kind, **changes)
    if kind is JsonType.LIST:
        yield from _fields(f"{path}[]", inner)
    elif kind is JsonType.OBJECT:
        for member in msgspec.structs.fields(inner):
            yield from _fields(f"{path}.{member.encode_name}", member.type)


FIELDS: Final = (
    *_fields("result", Result),
    # Known variations: more groups of checks, and checks directly under `result`.
    *_fields("result.modelResults.*", list[Check], required=False),
    *_fields(f"result.{TECHNICAL_CHECKS}", list[Check], required=False),
)
"""The soft contract: the vendor's response and its known variations."""

GEOMETRY: Final = frozenset({"landmarks", "boundingbox", "idfaces", "selfiefaces"})
"""Keys of biometric geometry, in lower case without `_` and `-`."""
_BETWEEN: Final = r"(?:[_-]|\\u00(?:5f|2d|00))*"
"""Between two letters of a key, as it is or escaped; NUL is in UTF-16 that is read as UTF-8."""
_GEOMETRY_NAME: Final = re.compile(
    "|".join(
        _BETWEEN.join(rf"(?:{letter}|\\u00(?:{ord(letter):02x}|{ord(letter.upper()):02x}))" for letter in key)
        for key in sorted(GEOMETRY)
    ),
    re.IGNORECASE,
)
"""Finds geometry in a body that is not JSON."""
_MARKER: Final = re.compile(r"\[geometry removed: ([0-9]+)\]")
_REST_MARKER: Final = "[geometry removed: rest of an unreadable body]"
_KEY: Final = re.compile(rf"({STRING})([ \t\n\r]*:[ \t\n\r]*)?", re.DOTALL)
_VALUE_TOKEN: Final = re.compile(rf'{STRING}|[\[\]{{}},]|[^\[\]{{}},"]+', re.DOTALL)
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Received:
    """A body that meets the hard contract. `text` is the JSON to store, without geometry."""

    text: str
    verification_id: int
    verified: bool
    parsed: Json
    """The parsed `text`."""

    def __repr__(self) -> str:
        return f"Received(verification_id={self.verification_id}, verified={self.verified})"


def receive(body: bytes) -> Received:
    """Checks the body of a 2xx response against the hard contract.

    `verificationId` is an int64, or a string of its digits; `verified` is `true` or `false`. Raises
    :class:`ContractBroken`, whose `text` is to be quarantined, or :class:`NotAResponse` if it is not JSON.
    """
    return reread(redact(body))


def reread(text: str) -> Received:
    """Checks a stored response in the same way."""
    try:
        envelope = read_json(text)
    except NotJson:
        raise NotAResponse("the response is not JSON", text=text) from None
    result = _only(envelope, "result")
    if not isinstance(result, Object):
        raise ContractBroken("the response has no `result` object", text=text)
    given = _only(result, "verificationId")
    literal = given.literal if isinstance(given, Number) else given if isinstance(given, str) else ""
    identifier = _identifier(literal)
    if identifier is None:
        raise ContractBroken("the response needs one 64-bit integer `result.verificationId`", text=text)
    verified = _only(result, "verified")
    if not isinstance(verified, bool):
        raise ContractBroken("the response needs one boolean `result.verified`", text=text)
    return Received(text, identifier, verified, envelope)


def _only(value: Json, key: str) -> Json:
    """The value of `key`; None if it is absent or repeated with different values."""
    if not isinstance(value, Object):
        return None
    found = value.values(key)
    return found[0] if found and all(other == found[0] for other in found) else None


def _identifier(literal: str) -> int | None:
    if _INTEGER.fullmatch(literal) is None:
        return None
    number = int(literal)
    return number if number in _INT64 else None


def redact(body: bytes) -> str:
    """The body as text to store: without biometric geometry and excessive nesting, otherwise as received.

    A value nested too deeply becomes `jsontext.DEEP_MARKER`.
    The value of a geometry key (any case) becomes `"[geometry removed: N]"`, where N is the
    number of its elements; null and empty values stay. A body that is not JSON is cut at the first geometry
    key, since the end of the geometry is unknown. The text is valid UTF-8 without NUL: a byte that is not
    UTF-8 becomes the JSON escape `\\udcNN`, and a lone surrogate its own escape.
    """
    text = cut_depth(_storable(body))
    if not _may_name_geometry(text) and "\\u" not in text:
        return text
    try:
        read_json(text)
    except NotJson:
        found = _GEOMETRY_NAME.search(text)
        return text if found is None else text[: found.start()] + _REST_MARKER
    return _cut(text)


def _may_name_geometry(text: str) -> bool:
    plain = _plain(text)
    return any(key in plain for key in GEOMETRY)


def is_geometry(key: str) -> bool:
    """Whether `key` holds biometric geometry."""
    return _plain(key) in GEOMETRY


def _plain(text: str) -> str:
    """`text` in the spelling of `GEOMETRY`."""
    return text.lower().replace("_", "").replace("-", "")


def removed_geometry(value: object) -> int | None:
    """The number of elements that the marker `value` replaced; None if it is no marker."""
    match = _MARKER.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1])


def _storable(body: bytes) -> str:
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        text = body.decode("utf-8", "surrogateescape")
    return escape_surrogates(text.removeprefix("\ufeff").replace("\0", "\\u0000"))


def _cut(text: str) -> str:
    """The JSON `text` with the values of geometry keys replaced by markers."""
    pieces: list[str] = []
    kept = position = 0
    while (match := _KEY.search(text, position)) is not None:
        position = match.end()
        if match[2] is None or not is_geometry(unquote(match[1])):
            continue
        end, elements = _measure(text, position)
        if elements and _MARKER.fullmatch(text[position + 1 : end - 1]) is None:
            pieces += [text[kept:position], f'"[geometry removed: {elements}]"']
            kept = end
        position = end
    return "".join([*pieces, text[kept:]])


def _measure(text: str, start: int) -> tuple[int, int]:
    """The end of the value at `start` and its number of elements (1 for a scalar, 0 for null)."""
    depth = commas = 0
    filled = False
    for token in _VALUE_TOKEN.finditer(text, start):
        mark = token[0]
        if mark in "[{":
            filled = filled or depth > 0
            depth += 1
        elif mark in "]}":
            depth -= 1
        elif mark == ",":
            commas += depth == 1
        elif depth == 0:
            scalar = mark.rstrip()
            return start + len(scalar), int(scalar not in {"null", '""'})
        else:
            filled = filled or bool(mark.strip())
        if depth == 0:
            return token.end(), commas + 1 if filled else 0
    raise NotJson("a value has no end")
