"""Reads JSON text exactly: it keeps what other parsers silently change.

Numbers keep their literals, objects their repeated keys. `NaN` and raw line breaks in strings are accepted.
A value nested deeper than `MAX_DEPTH` is read as `DEEP_MARKER`, so that no reader overflows its
stack. Slower than msgspec, so use it only for responses that need it.
"""

import json
import re
from typing import Final, TypeAlias

import msgspec


class NotJson(ValueError):
    """The text is not JSON, even by lenient rules."""


class Number(msgspec.Struct, frozen=True):
    """A number's literal: `0.970` differs from `0.97`, and 2^64 from its nearest double."""

    literal: str


class Object(msgspec.Struct, frozen=True):
    """An object's members in order, including repeated keys."""

    members: "list[tuple[str, Json]]"

    def values(self, key: str) -> "list[Json]":
        """All values of `key`."""
        return [value for name, value in self.members if name == key]


Json: TypeAlias = "Object | list[Json] | str | Number | bool | None"

STRING: Final = r'"[^"\\]*(?:\\.[^"\\]*)*"'
SURROGATE: Final = re.compile("[\ud800-\udfff]")
MAX_DEPTH: Final = 64
"""How deep objects and lists may be nested; the vendor's example has five levels."""
DEEP_MARKER: Final = f"[nested deeper than {MAX_DEPTH} levels: removed]"
# An unterminated string ends with the text: otherwise each of its quotes would be tried again.
_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
# `Number` keeps every literal and never hits the length limit of `int`.
_EXACT: Final = json.JSONDecoder(
    object_pairs_hook=Object, parse_float=Number, parse_int=Number, parse_constant=Number, strict=False
)


def read_json(text: str) -> Json:
    """Parses `text`. Raises :class:`NotJson`, never RecursionError."""
    try:
        return _EXACT.decode(cut_depth(text))  # type: ignore[no-any-return]
    except ValueError:
        raise NotJson("the text is not JSON") from None


def cut_depth(text: str, depth: int = MAX_DEPTH) -> str:
    """The JSON `text` with each value nested deeper than `depth` replaced by the string `DEEP_MARKER`.

    A text that ends within such a value, and so is not JSON, ends with the marker.
    """
    if text.count("[") + text.count("{") <= depth:
        return text
    pieces: list[str] = []
    level = kept = start = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "[{":
            level += 1
            if level == depth + 1:
                start = token.start()
        elif mark in "]}":
            level -= 1
            if level == depth:
                pieces += [text[kept:start], f'"{DEEP_MARKER}"']
                kept = token.end()
    if level > depth:
        pieces += [text[kept:start], f'"{DEEP_MARKER}"']
        kept = len(text)
    return "".join([*pieces, text[kept:]])


def write_json(value: Json) -> str:
    """Compact JSON text of `value` with its original number literals; valid UTF-8."""
    pieces: list[str] = []
    stack: list[tuple[Json, str]] = [(value, "")]
    while stack:
        item, literal = stack.pop()
        if literal:
            pieces.append(literal)
        elif isinstance(item, Object):
            pieces.append("{")
            stack.append((None, "}"))
            for index, (key, member) in reversed(list(enumerate(item.members))):
                stack += [(member, ""), (None, f"{',' if index else ''}{quote(key)}:")]
        elif isinstance(item, list):
            pieces.append("[")
            stack.append((None, "]"))
            for index, member in reversed(list(enumerate(item))):
                stack.append((member, ""))
                if index:
                    stack.append((None, ","))
        elif isinstance(item, Number):
            pieces.append(item.literal)
        else:
            pieces.append(quote(item) if isinstance(item, str) else json.dumps(item))
    return "".join(pieces)


def quote(text: str) -> str:
    """The JSON string literal of `text`; a lone surrogate becomes its escape."""
    return escape_surrogates(json.dumps(text, ensure_ascii=False))


def escape_surrogates(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot encode, as JSON escapes."""
    return text if text.isascii() else SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unquote(literal: str) -> str:
    """The string of a JSON string literal (with quotes); may hold lone surrogates."""
    if "\\" not in literal:
        return literal[1:-1]
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        raise NotJson("invalid escape in a string") from None
