"""`kyc-pipeline rejected`: lists rejected rows with file, row and reason."""

from datetime import date

import click

from kyc_pipeline.cli.options import IsoDate, format_table
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import REJECTED_LABELS, REJECTED_SUBMISSIONS
from kyc_pipeline.landing.zone import LABELS_FOLDER
from kyc_pipeline.settings import load_settings

COLUMNS = ["manifest", "manifest_row", "reason"]


@click.command()
@click.option("--from", "first", type=IsoDate(), help="First day; by default the first one in the lake.")
@click.option("--to", "last", type=IsoDate(), help="Last day, included; by default the last one.")
def rejected(first: date | None, last: date | None) -> None:
    """List the rejected rows: day, manifest, row (1 is the first data row) and reason.

    Correct them in their manifest: the next run of the day reads it again. Details are only in the lake's
    `rejected_submissions`, because they may be personal. Rejected rows of the manifests in `labels/` come
    last, whatever the days.
    """
    lake = Lake(load_settings().kyc_lake)
    ingested = lake.dates(REJECTED_SUBMISSIONS)
    days = [
        day
        for day in ingested
        if (first is None or first.isoformat() <= day) and (last is None or day <= last.isoformat())
    ]
    rows = [
        (day, row["manifest"], row["manifest_row"], row["reason"])
        for day in days
        for row in lake.read(REJECTED_SUBMISSIONS, day, COLUMNS).to_pylist()
    ]
    if lake.exists(REJECTED_LABELS, WHOLE):
        rows += [
            (LABELS_FOLDER, row["manifest"], row["manifest_row"], row["reason"])
            for row in lake.read(REJECTED_LABELS, WHOLE, COLUMNS).to_pylist()
        ]
    if not rows:
        nothing = "" if ingested else f": no day is ingested yet in {lake.root}"
        click.echo(f"no rejected rows{nothing}")
        return
    click.echo(format_table(("date", "manifest", "row", "reason"), rows))
