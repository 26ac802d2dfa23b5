"""`kyc-pipeline report --evidence`: writes the regulator's pack from the published warehouse."""

from datetime import date
from pathlib import Path

import click

from kyc_pipeline.cli.options import IsoDate
from kyc_pipeline.cli.output import OUTPUT_FOLDER
from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import plural


@click.command()
@click.option("--evidence", is_flag=True, help="Write the regulator's pack: the only kind so far.")
@click.option("--from", "first", type=IsoDate(), help="First day of the period; by default the first one.")
@click.option("--to", "last", type=IsoDate(), help="Last day, included; by default the last one.")
@click.option(
    "--output",
    type=OUTPUT_FOLDER,
    help="Existing folder for the files; by default, evidence/ beside KYC_REPORT, which is made.",
)
def report(evidence: bool, first: date | None, last: date | None, output: Path | None) -> None:
    """Write the metrics that NIST SP 800-63-4 recommends, as far as the data have them, as HTML and CSV.

    Rates are by person, over people whose first submission is in the period; only confirmed fraud is by
    submission. The pack says what the pipeline cannot observe, and from which data, code and settings the
    figures come. Makes no call.
    """
    if not evidence:
        raise UsageError("add --evidence; `kyc-pipeline publish` makes the report itself")
    # Not at load: Altair, which the package of the report needs, takes over a second to import.
    from kyc_pipeline.analyze.report.evidence import BUILD_FILE, METRICS_FILE, PAGE, write_evidence

    settings = load_settings()
    if output is None and isinstance(settings.kyc_report, str):
        raise UsageError("KYC_REPORT is in an object store: add --output with a folder for the files")
    folder = output or Path(settings.kyc_report).parent / "evidence"
    found = write_evidence(settings.kyc_warehouse, folder, first, last)
    click.echo(
        f"{found.first} to {found.last}: {plural(len(found.measured), 'metric')} measured,"
        f" {len(found.missing)} not observable here"
    )
    click.echo(f"{folder}: {PAGE}, {METRICS_FILE}, {BUILD_FILE}")
