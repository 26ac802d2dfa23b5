"""Which line ends of a CSV end a row, and which are text of a cell.

The header's line end (LF, with or without CR, or CR alone) is that of all rows. Another line end between two
characters of text is *stray*: text of a cell, in quotes or not. A reader of CSV would end the row there, so
it gets a mark in its place.
"""

import re
from typing import Final, cast

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.ingest.formats.typed_values import ArrowColumn

_FIRST_END: Final = re.compile(r'(?:[^"\r\n]++|"[^"]*+")*+(\r*\n|\r)')
_STRAY_ENDS: Final = {  # not part of \r\r\n or of an empty line
    "\r": re.compile(r"\r(?<=[^\r\n]\r)\r*(?=[^\r\n])"),
    "\n": re.compile(r"\n(?<=[^\r\n]\n)\n*(?=[^\r\n])"),
}
_MARK: Final = "\ufdd0"
"""Unicode keeps it for such uses."""
_ESCAPES: Final = (("\ufdd1", "\ufdd1b"), (_MARK, "\ufdd1a"))
"""A text may contain the mark itself: what stands for it, and for the first character of an escape."""


class LineEnds:
    """The line ends of the file that begins with `start`, its header."""

    def __init__(self, start: str) -> None:
        first = _FIRST_END.match(start)
        is_cr = first is not None and first[1] == "\r"
        self.of_rows, self._stray = ("\r", "\n") if is_cr else ("\n", "\r")
        self._has_marks = False

    def marked(self, text: str, before: str = "") -> str:
        """`text` after `before`, which is marked already, with marks for the stray line ends.

        A line end at the end of the text is not decided yet.
        """
        marked = text
        for character, escape in _ESCAPES:
            marked = marked.replace(character, escape)
        marked = _STRAY_ENDS[self._stray].sub(lambda found: _MARK * len(found[0]), before + marked)
        self._has_marks |= marked != before + text
        return marked

    def decided(self, text: str) -> int:
        """Where the lines end in a marked text that what follows cannot change."""
        end = len(text.rstrip("\r\n"))
        if not end or self.of_rows in text[end:].removesuffix("\r"):
            return len(text.removesuffix("\r"))  # a LF may follow
        return 1 + max(text.rfind("\n", 0, end), text.rfind("\r", 0, end))

    def unmarked(self, text: str) -> str:
        """A marked text as it was."""
        for mark, original in self._marks():
            text = text.replace(mark, original)
        return text

    def unmarked_column(self, column: ArrowColumn) -> ArrowColumn:
        """A column of marked texts as they were."""
        for mark, original in self._marks():
            column = pc.replace_substring(cast("pa.StringArray", column), mark, original)
        return column

    def _marks(self) -> list[tuple[str, str]]:
        if not self._has_marks:
            return []
        return [(_MARK, self._stray), *((escape, character) for character, escape in reversed(_ESCAPES))]
