"""Replaces the key of the pseudonyms: in the ledger, then in the lake's curated tables, day by day.

It can be killed at any point and repeated: the ledger changes in one transaction, and each day's tables name
their key in the footer. Then rebuild the warehouse.
"""

from collections.abc import Iterator

from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten.partition import KEY_ID, flatten_partition
from kyc_pipeline.lake.storage import Lake, PartitionMissing
from kyc_pipeline.lake.tables import CURATED_TABLES


def outdated_days(lake: Lake, key_id: str) -> list[str]:
    """The days with a curated table that another key made, in order. Raises :class:`PartitionUnreadable`."""
    return sorted(
        {
            day
            for table in CURATED_TABLES
            for day in lake.dates(table)
            if lake.metadata(table, day).get(KEY_ID) != key_id
        }
    )


def rekey_lake(stores: Stores) -> Iterator[tuple[str, KycError | None]]:
    """Flattens each outdated day again. Yields it, with the error if its responses are gone."""
    for day in outdated_days(stores.lake, stores.pseudonymizer.key_id):
        problem = None
        with stores.ledger.holding([day]):
            try:
                flatten_partition(stores.lake, day, stores.pseudonymizer, stores.clear_tags, force=True)
            except PartitionMissing as error:
                problem = error
        yield day, problem
