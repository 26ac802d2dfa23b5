"""Whether a new build would equal the published one: then there is nothing to build.

A build is a function of the lake's partitions, the code, some settings and the key of the pseudonyms. It
stores the identity of each in `build_partitions` and `build_inputs`. The published files have the time of the
build as their modification time, which any later change to them replaces; in an object store, the pointer has
both the time and the identities of the objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from kyc_pipeline.analyze.build import Partitions, partition_version
from kyc_pipeline.analyze.publish import Place, open_warehouse, problems, time_of_build
from kyc_pipeline.analyze.sql_models import sql_folder
from kyc_pipeline.code_identity import code_identity
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import WHOLE
from kyc_pipeline.settings import Settings
from kyc_pipeline.wording import plural

Inputs = Mapping[str, str | None]


def build_inputs(settings: Settings, key_id: str | None, labels: str | None = None) -> Inputs:
    """What decides the content of a build and of its report, besides the partitions.

    `key_id` identifies the key of the pseudonyms, `labels` the version of the labels; None without one.
    """
    price = settings.deepxl_price_per_call
    return {
        "code": code_identity(sql_folder()),
        "duckdb": duckdb.__version__,
        "labels": labels,
        "pseudonym_key": key_id,
        "DEEPXL_CURRENCY": settings.deepxl_currency,
        "DEEPXL_PRICE_PER_CALL": None if price is None else str(price),
        "KYC_CLEAR_TAGS": ",".join(sorted(settings.kyc_clear_tags)),
        "KYC_DIMENSIONS": ",".join(settings.kyc_dimensions),
        "KYC_MIN_CELL": str(settings.kyc_min_cell),
        "KYC_SUBJECT_TAGS": ",".join(settings.kyc_subject_tags),
        "KYC_VERDICT_TARGET_SECONDS": str(settings.kyc_verdict_target_seconds),
        "KYC_WAREHOUSE_MAX_FACT_ROWS": str(settings.kyc_warehouse_max_fact_rows),
    }


@dataclass(frozen=True, slots=True)
class Published:
    """The published build, and what it was made from."""

    place: Place
    run_id: str
    built_ns: int
    """When the build began, in nanoseconds since the epoch."""
    inputs: Inputs
    partitions: Mapping[tuple[str, str], str]
    """(table, day) → version."""

    def differences(self, partitions: Partitions, inputs: Inputs) -> list[str]:
        """Why a new build of these partitions would differ, one line for each reason; empty if up to date."""
        now = {
            (table, day): partition_version(file)
            for table, days in partitions.items()
            for day, file in days.items()
            if day != WHOLE
        }
        changed = len(dict(now.items() ^ self.partitions.items()))
        return [
            *([f"{plural(changed, 'partition')} new, changed or gone"] if changed else []),
            *self.changed_inputs(inputs),
            *problems(self.place, self.built_ns, is_restricted=self.inputs.get("KYC_MIN_CELL") != "1"),
        ]

    def changed_inputs(self, inputs: Inputs) -> list[str]:
        """The inputs that have changed since, one line each."""
        return [
            f"{name} has changed" for name, _ in sorted(dict(inputs.items() ^ self.inputs.items()).items())
        ]


def read_published(warehouse: Place) -> Published | None:
    """The published build; None if there is none, or none that this code can read."""
    try:
        with open_warehouse(warehouse) as connection:
            ((run_id,),) = connection.execute("SELECT run_id FROM build_info").fetchall()
            built_ns = time_of_build(connection)
            inputs = dict(connection.execute("SELECT name, value FROM build_inputs").fetchall())
            partitions = {
                (table, day): version
                for table, day, version in connection.execute(
                    "SELECT table_name, date::VARCHAR, version FROM build_partitions"
                ).fetchall()
            }
            return Published(warehouse, run_id, built_ns, inputs, partitions)
    except (KycError, duckdb.Error, ValueError):
        return None
