"""Whether an answer is about what was sent: its sizes and tags against ours.

A mismatch does not undo a paid call. It is named on the record (`error`), never with a value.
"""

from collections.abc import Mapping

import msgspec


class _Result(msgspec.Struct, rename="camel"):
    id_file_size: object = None
    id_size: object = None
    selfie_file_size: object = None
    selfie_size: object = None
    tags: object = None


class _Envelope(msgspec.Struct):
    result: _Result


_DECODER = msgspec.json.Decoder(_Envelope)


def echo_mismatches(text: str, *, id_size: int, selfie_size: int, tags: Mapping[str, str]) -> tuple[str, ...]:
    """The answer's fields that contradict what was sent; what an answer leaves out contradicts nothing."""
    try:
        result = _DECODER.decode(text).result
    except msgspec.MsgspecError:
        return ()
    sizes = {
        "idFileSize": (result.id_file_size, id_size),
        "idSize": (result.id_size, id_size),
        "selfieFileSize": (result.selfie_file_size, selfie_size),
        "selfieSize": (result.selfie_size, selfie_size),
    }
    wrong = [name for name, (echoed, sent) in sizes.items() if echoed is not None and echoed != sent]
    if isinstance(result.tags, list):
        echoed_tags = [(tag.get("name"), tag.get("value")) for tag in result.tags if isinstance(tag, dict)]
        wrong += [f"tag {name}" for name in sorted(tags) if (name, tags[name]) not in echoed_tags]
    return tuple(wrong)
