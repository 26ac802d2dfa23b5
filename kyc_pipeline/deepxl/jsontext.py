"""Reads JSON text exactly: it keeps what other parsers silently change.

Numbers keep their literals, objects their repeated keys. Nesting may have any depth; `NaN` and raw line
breaks in strings are accepted. Slower than msgspec, so use it only for responses that need it.
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
_BLANK: Final = r"[ \t\n\r]*"
_VALUE: Final = re.compile(
    rf"{_BLANK}(?:(?P<string>{STRING})|(?P<open>[{{\[])|(?P<word>true|false|null)"
    r"|(?P<number>-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|Infinity)|NaN))",
    re.DOTALL,
)
_KEY: Final = re.compile(rf"{_BLANK}({STRING}){_BLANK}:", re.DOTALL)
_CLOSE: Final = re.compile(rf"{_BLANK}([}}\]])")
_NEXT: Final = re.compile(rf"{_BLANK}([,}}\]])")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
_REST: Final = re.compile(_BLANK)
# `Number` keeps every literal and never meets the length limit of `int`.
_EXACT: Final = json.JSONDecoder(
    object_pairs_hook=Object, parse_float=Number, parse_int=Number, parse_constant=Number, strict=False
)
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}


def read_json(text: str) -> Json:
    """Parses `text`. Raises :class:`NotJson`, never RecursionError."""
    try:
        return _EXACT.decode(text)  # type: ignore[no-any-return]
    except RecursionError:
        return _read_deep(text)
    except ValueError:
        raise NotJson("the text is not JSON") from None


def _read_deep(text: str) -> Json:
    """`read_json` with its own stack: any depth, but seven times slower.

    It ensures that no paid response is lost and that geometry is cut at any depth.
    """
    value, position, opened = _value(text, 0)
    # The open containers, each already in its parent.
    stack: list[Object | list[Json]] = []
    root = value
    while True:
        if opened:
            assert isinstance(value, Object | list)
            empty = _CLOSE.match(text, position)
            if empty is None:
                stack.append(value)
                value, position, opened = _member(text, position, value)
                continue
            _check_pair(value, empty[1])
            position = empty.end()
        while stack and (after := _NEXT.match(text, position)) is not None:
            position = after.end()
            if after[1] == ",":
                break
            _check_pair(stack.pop(), after[1])
        else:
            if stack or _REST.fullmatch(text, position) is None:
                raise NotJson("a bracket or a comma is missing, or text follows the value")
            return root
        value, position, opened = _member(text, position, stack[-1])


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


def _member(text: str, position: int, parent: Object | list[Json]) -> tuple[Json, int, bool]:
    """Reads the next member of `parent` and appends it."""
    if isinstance(parent, list):
        value, position, opened = _value(text, position)
        parent.append(value)
        return value, position, opened
    key = _KEY.match(text, position)
    if key is None:
        raise NotJson("expected a key")
    value, position, opened = _value(text, key.end())
    parent.members.append((unquote(key[1]), value))
    return value, position, opened


def _value(text: str, position: int) -> tuple[Json, int, bool]:
    """Reads a scalar or the start of a container: the value, the next position, whether it is a container."""
    match = _VALUE.match(text, position)
    if match is None:
        raise NotJson("expected a value")
    kind = str(match.lastgroup)
    token = match[kind]
    value: Json
    if kind == "string":
        value = unquote(token)
    elif kind == "number":
        value = Number(token)
    elif kind == "word":
        value = _WORDS[token]
    else:
        value = Object([]) if token == "{" else []
    return value, match.end(), kind == "open"


def _check_pair(container: Object | list[Json], closing: str) -> None:
    if closing != ("}" if isinstance(container, Object) else "]"):
        raise NotJson("brackets do not match")
