"""Contract drift: a response's differences from the contract, by path and kind.

The walk over a response follows the contract's fields: each leaf is a known field of the right kind, or it is
reported. Paths hold names, never values: a key that does not look like a field name may be data, so it shows
as `?`.
"""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from kyc_pipeline.deepxl.contract import FIELDS, Field, JsonType, integer, is_geometry, removed_geometry
from kyc_pipeline.deepxl.jsontext import Json, Number, Object
from kyc_pipeline.vocabulary import DriftKind

MAX_PATH_DEPTH: Final = 16
"""An unknown place below this depth is reported under its ancestor's path."""
MAX_PATHS: Final = 2_000
"""Maximum distinct entries of one partition; later ones are counted under `OTHER_PATHS`."""
OTHER_PATHS: Final = "(other paths)"
_FIELD_NAME: Final = re.compile(r"(?!.*[0-9]{4})[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(slots=True)
class _Place:
    """A field of the contract and its known members."""

    known: Field
    members: "dict[str, _Place]" = field(default_factory=dict)
    any_member: "_Place | None" = None
    item: "_Place | None" = None
    required: list[tuple[str, ...]] = field(default_factory=list)
    usual: frozenset[str] = frozenset()
    """The first name of each required member; an object with all of them lacks none."""
    takes: Callable[[Json], bool] = lambda value: False
    """Whether a value is a scalar with nothing to report. Most are, so check this first."""


def _places() -> _Place:
    root = _Place(Field("", JsonType.OBJECT))
    by_path = {"": root}
    for each in FIELDS:
        place = by_path[each.path] = _Place(each)
        if each.kind not in (JsonType.OBJECT, JsonType.LIST):
            place.takes = partial(_is_unremarkable, _KINDS[each.kind], each.odd)
        if each.path.endswith("[]"):
            by_path[each.path.removesuffix("[]")].item = place
            continue
        parent_path, _, name = each.path.rpartition(".")
        parent = by_path[parent_path]
        if name == "*":
            parent.any_member = place
            continue
        parent.members |= dict.fromkeys(each.names, place)
        if each.required:
            parent.required.append((*each.names, *each.unless))
            parent.usual |= {name}
    return root


def _is_unremarkable(
    is_right: Callable[[Json], bool], is_odd: Callable[[Json], bool] | None, value: Json
) -> bool:
    return value != "" and is_right(value) and not (is_odd and is_odd(value))


_KINDS: Final[dict[JsonType, Callable[[Json], bool]]] = {
    JsonType.OBJECT: lambda value: isinstance(value, Object),
    JsonType.LIST: lambda value: isinstance(value, list),
    JsonType.STRING: lambda value: isinstance(value, str),
    JsonType.INTEGER: lambda value: integer(value) is not None,
    JsonType.NUMBER: lambda value: isinstance(value, Number),
    JsonType.BOOLEAN: lambda value: isinstance(value, bool),
}
_ROOT: Final = _places()


def survey(response: Json, personal: Callable[[], Container[str]]) -> Iterator[tuple[str, DriftKind]]:
    """Every difference between `response` and the contract, as (path, kind), with repetitions.

    `personal` returns the `letters` of words that no path may show, such as those of the tags sent. It is
    called for each unknown key.
    """
    todo: list[tuple[Json, str, int, _Place | None]] = [(response, "", 0, _ROOT)]
    while todo:
        value, path, depth, place = todo.pop()
        if place is None:
            if not isinstance(value, Object | list) or _is_empty(value):
                yield path, DriftKind.UNKNOWN_FIELD
                continue
        elif (kind := _difference(value, place)) is not None:
            yield path, kind
            if kind is not DriftKind.TYPE_MISMATCH or _is_empty(value):
                continue
            place = None
        if isinstance(value, Object):
            yield from ((_join(path, name), DriftKind.MISSING_FIELD) for name in _missing(value, place))
            for key, member, known, repeated in _members_to_examine(value, place):
                name = key if place is not None and key in place.members else shown_key(key, personal())
                below = _join(path, name) if depth < MAX_PATH_DEPTH else path
                kind = _geometry(key, member) or (DriftKind.DUPLICATE_FIELD if repeated else None)
                if kind is not None:
                    yield below, kind
                else:
                    todo.append((member, below, depth + 1, known))
        elif isinstance(value, list):
            below = f"{path}[]" if depth < MAX_PATH_DEPTH else path
            todo += [(item, below, depth + 1, place and place.item) for item in value]


def _members_to_examine(value: Object, place: _Place | None) -> list[tuple[str, Json, _Place | None, bool]]:
    """Members to examine: key, value, known place, and whether a later member has the same key."""
    places, other = ({}, None) if place is None else (place.members, place.any_member)
    found = []
    seen: set[str] = set()
    # In reverse: the last member with a key counts.
    for key, member in reversed(value.members):
        known = places.get(key, other)
        if known is None or key in seen or not known.takes(member):
            found.append((key, member, known, key in seen))
        seen.add(key)
    return found


def shown_key(key: str, personal: Container[str]) -> str:
    """`key` as a path shows it: an identifier without long numbers; else `?`."""
    return key if _FIELD_NAME.fullmatch(key) and letters(key) not in personal else "?"


def letters(word: str) -> str:
    """The letters and digits of a word in lower case, to compare it with others however they are written."""
    return "".join(filter(str.isalnum, word.lower()))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_empty(value: Json) -> bool:
    return not (value.members if isinstance(value, Object) else value) and isinstance(
        value, Object | list | str
    )


def _difference(value: Json, place: _Place) -> DriftKind | None:
    if value is None:
        return DriftKind.NULL_FIELD
    if not _KINDS[place.known.kind](value):
        return DriftKind.TYPE_MISMATCH
    if _is_empty(value):
        return DriftKind.EMPTY_FIELD
    return place.known.drift if place.known.odd is not None and place.known.odd(value) else None


def _geometry(key: str, value: Json) -> DriftKind | None:
    """The drift of a geometry key; None if `key` is no geometry or its value was not cut."""
    if not is_geometry(key):
        return None
    if removed_geometry(value) is not None:
        return DriftKind.GEOMETRY_REMOVED
    if value is None:
        return DriftKind.NULL_FIELD
    return DriftKind.EMPTY_FIELD if _is_empty(value) else None


def _missing(value: Object, place: _Place | None) -> Sequence[str]:
    if place is None:
        return ()
    present = {key for key, _ in value.members}
    if place.usual <= present:
        return ()
    return [names[0] for names in place.required if present.isdisjoint(names)]


class DriftCounter:
    """Counts one partition's drift, in memory bounded by `MAX_PATHS`."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, DriftKind], tuple[int, str]] = {}

    def add(self, path: str, kind: DriftKind, submission_id: str) -> None:
        """Counts one occurrence. Submissions must come in order: the first is the example."""
        key = (path, kind)
        if key not in self._found and len(self._found) >= MAX_PATHS:
            key = (OTHER_PATHS, kind)
        occurrences, example = self._found.get(key, (0, submission_id))
        self._found[key] = (occurrences + 1, example)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `contract_drift`, by path and kind."""
        return [
            {"path": path, "kind": kind, "occurrences": occurrences, "example_submission_id": example}
            for (path, kind), (occurrences, example) in sorted(self._found.items())
        ]
