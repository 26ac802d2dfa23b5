"""The contents of the page, in order: aggregates only, no personal data."""

import duckdb

from kyc_pipeline.analyze.report import confidences, failures, operations, overview, rates
from kyc_pipeline.analyze.report.page import Page
from kyc_pipeline.analyze.report.reader import Rows, WarehouseReader
from kyc_pipeline.errors import KycError


def read_page(connection: duckdb.DuckDBPyConnection) -> Page:
    """Reads everything on the page from an open warehouse. Creates temporary tables in `connection`."""
    reader = WarehouseReader(connection)
    threshold_explorer, explorer = confidences.thresholds(reader)
    return Page(
        build=overview.build(reader),
        periods=reader.periods,
        checks=[check.label for check in reader.checks],
        tiles={period.key: overview.tiles(reader, period) for period in reader.periods},
        remarks=overview.remarks(reader),
        sections=[
            rates.verdicts(reader),
            rates.pass_rates(reader),
            rates.changes(reader),
            failures.failures(reader),
            threshold_explorer,
            confidences.confidences(reader),
            confidences.drift(reader),
            operations.funnel(reader),
            rates.companies(reader),
            operations.subjects(reader),
            operations.api(reader),
        ],
        explorer=explorer,
        findings=_findings(reader),
    )


def _findings(reader: WarehouseReader) -> Rows:
    """The checks that failed when the warehouse was published, errors first."""
    try:
        return reader.rows(
            "SELECT * FROM build_checks WHERE NOT passed ORDER BY severity = 'error' DESC, check_name"
        )
    except duckdb.CatalogException as error:
        raise KycError(
            "the warehouse was built by an older version: build it again with `kyc-pipeline publish`"
        ) from error
