"""One spelling for texts that a reader takes for the same, so that an erased person is recognised.

Compatibility forms (full width, ligatures), upper and lower case, invisible characters, digits of other
scripts, kinds of hyphens, apostrophes and blanks make no difference. Letters of other scripts that look alike
do: they are other letters.
"""

import functools
import re
import unicodedata
from typing import Final

_INVISIBLE: Final = re.compile(
    # Invisible letters and marks (Unicode: Default_Ignorable_Code_Point) outside the categories Cf and Cc.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_ALIKE: Final = {
    "\u2212": "-",  # the minus sign
    "\u2800": " ",  # a Braille pattern without dots
    **dict.fromkeys("\u2018\u2019\u201b\u2032\u02b9\u02bb\u02bc\u02c8", "'"),
}
_SEPARATORS: Final = re.compile(r"[\W_]+")


def fold(text: str, *, former: bool = False) -> str:
    """The text in its one spelling; empty if nothing of it is visible.

    `former`: without folding digits, apostrophes and the minus sign, as earlier versions did.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.casefold().split())
    # First, because an invisible character would keep an accent from its letter.
    composed = unicodedata.normalize("NFKC", _visible(text, former))
    folded = unicodedata.normalize("NFKC", composed.casefold())
    return " ".join(_visible(folded, former).split())


@functools.lru_cache(maxsize=4096)
def fold_name(name: str) -> str:
    """The name of a tag in its one spelling, also without blanks, hyphens and underscores."""
    return _SEPARATORS.sub("", fold(name)) or fold(name)


def _visible(text: str, former: bool) -> str:
    return "".join(_folded(character, former) for character in _INVISIBLE.sub("", text))


def _folded(character: str, former: bool) -> str:
    if character.isspace():
        return " "
    match unicodedata.category(character):
        case "Cf" | "Cc":
            return ""
        case "Pd":
            return "-"
        case "Nd" if not former:
            return str(unicodedata.decimal(character))
    return character if former else _ALIKE.get(character, character)
