"""What was sent of a submission, if that is less than the submission: the column `sent`.

`KYC_SEND_TAGS` withholds tags, and `KYC_STRIP_METADATA` removes metadata from documents. DeepXL's records are
compared with what was sent under the settings of that time, so the settings may change later.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec


class SentContent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Differences between a submission and what was sent of it."""

    tags: tuple[str, ...] | None = None
    """Names of the tags that were sent, in order; None: all."""
    id: tuple[str, int] | None = None
    """SHA-256 (hex) and size in bytes of the ID document that was sent; None: the accepted one."""
    selfie: tuple[str, int] | None = None
    """Likewise of the selfie."""

    def text(self) -> str | None:
        """The column's value; None if there is no difference."""
        return None if self == UNCHANGED else msgspec.json.encode(self).decode()

    def echoed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a response repeats of `row` of `submissions`, as it was sent: sizes and tags."""
        tags = dict(row["tags"] or ())
        return {
            "id_size": self.id[1] if self.id else row["id_size"],
            "selfie_size": self.selfie[1] if self.selfie else row["selfie_size"],
            "tags": only(tags, self.tags),
        }


UNCHANGED: Final = SentContent()
_DECODER: Final = msgspec.json.Decoder(SentContent)


def read_sent(text: str | None) -> SentContent:
    """The content of the column's value."""
    return UNCHANGED if text is None else _DECODER.decode(text)


def only(tags: Mapping[str, str], names: Collection[str] | None) -> dict[str, str]:
    """The tags with these names; all if `names` is None."""
    return {name: value for name, value in tags.items() if names is None or name in names}
