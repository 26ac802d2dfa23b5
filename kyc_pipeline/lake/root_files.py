"""Small files at the lake's root, one JSON record each, such as the lake's identity."""

from typing import TypeVar

import msgspec

from kyc_pipeline.errors import KycError, is_outside_fault, plain_line, reason
from kyc_pipeline.lake.atomic import make_folder, replacing
from kyc_pipeline.lake.storage import Lake

Record = TypeVar("Record")


def read_record(lake: Lake, name: str, record_type: type[Record], advice: str) -> Record | None:
    """The record; None without the file. Raises :class:`KycError` with `advice` if it is unreadable."""
    path = f"{lake.root}/{name}"
    try:
        with lake.fs.open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=record_type)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        if is_outside_fault(error):
            raise KycError(f"{path}: {plain_line(error)}") from None
        raise KycError(f"{path} cannot be read ({type(error).__name__}): {advice}") from None


def write_record(lake: Lake, name: str, record: object, problem: str) -> None:
    """Replaces the file, durably. Raises :class:`KycError` if that fails.

    `problem` is its text, in which `{path}` and `{reason}` are replaced.
    """
    path, content = f"{lake.root}/{name}", msgspec.json.encode(record)
    try:
        if not lake.is_local:
            lake.fs.pipe_file(path, content)
            return
        make_folder(lake.root)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise KycError(problem.format(path=path, reason=reason(error))) from error
