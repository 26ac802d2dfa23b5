"""Column lineage: the sources of each column of the warehouse, up to DeepXL's response.

`sql/lineage.json` has the direct sources, derived from the models' SQL by `derived_lineage.py`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from kyc_pipeline.analyze.sql_models import LAKE, load_models, sql_folder
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import ALL_TABLES

TABLES_BY_NAME: Final = {table.name: table for table in ALL_TABLES}


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A column from which another one is derived: of the lake if `in_lake`, else of another model."""

    in_lake: bool
    table: str
    column: str

    def __str__(self) -> str:
        return f"{LAKE}.{self.table}.{self.column}" if self.in_lake else f"{self.table}.{self.column}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The source that :meth:`__str__` wrote."""
        *schema, table, column = text.split(".")
        return cls(bool(schema), table, column)


def lineage_file() -> Path:
    """The file of the direct sources."""
    return sql_folder() / "lineage.json"


@lru_cache(maxsize=1)
def column_sources() -> Mapping[str, Mapping[str, tuple[Source, ...]]]:
    """Model → column → its direct sources; a constant, such as a bin's edge, has none.

    Raises :class:`KycError` if the file is missing or damaged.
    """
    try:
        return {
            model: {column: tuple(map(Source.parse, sources)) for column, sources in columns.items()}
            for model, columns in json.loads(lineage_file().read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise KycError(
            f"{lineage_file()} is missing or damaged: install the package again; in a checkout, run "
            "`make dictionary`"
        ) from error


def response_fields(
    direct: Mapping[str, Mapping[str, Iterable[Source]]],
) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Model → column → the fields of DeepXL's response from which it is derived, through all models.

    `direct` are the columns' direct sources.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for model in load_models():
        columns: dict[str, tuple[str, ...]] = {}
        for column, sources in direct[model.name].items():
            fields: set[str] = set()
            for source in sources:
                fields.update(
                    lake_response_fields(source.table, source.column)
                    if source.in_lake
                    else found[source.table][source.column]
                )
            columns[column] = tuple(sorted(fields))
        found[model.name] = columns
    return found


def lake_response_fields(table: str, column: str) -> tuple[str, ...]:
    """The fields of DeepXL's response from which a column of the lake is derived; `date` has none."""
    if column == "date":
        return ()
    return tuple(path for path in TABLES_BY_NAME[table].column(column).made_from if is_response_field(path))


def is_response_field(path: str) -> bool:
    """Whether `path` is a field of the response, not a column of the lake."""
    return path.partition(".")[0] not in TABLES_BY_NAME
