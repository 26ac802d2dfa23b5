"""`kyc-pipeline sample`: a stratified sample for manual review, as a file that comes back as labels."""

import csv
import io
from datetime import date
from pathlib import Path

import click

from kyc_pipeline.analyze.sample import By, draw
from kyc_pipeline.cli.options import IsoDate, display_path
from kyc_pipeline.cli.output import OUTPUT_FILE
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.settings import load_settings
from kyc_pipeline.vocabulary import LABEL_FIELDS
from kyc_pipeline.wording import plural

SOURCE = "manual-review"


@click.command()
@click.option("--n", type=click.IntRange(min=1), required=True, help="How many submissions to draw.")
@click.option(
    "--seed", type=click.IntRange(min=0), required=True, help="The same seed draws the same sample."
)
@click.option(
    "--by",
    type=click.Choice([each.value for each in By]),
    help="Divide each verdict into strata by failed checks, or by the values of KYC_DIMENSIONS.",
)
@click.option("--from", "first", type=IsoDate(), help="First day; by default the first one.")
@click.option("--to", "last", type=IsoDate(), help="Last day, included; by default the last one.")
@click.option(
    "--output",
    type=OUTPUT_FILE,
    help="The file, in an existing folder; by default sample-<seed>.csv in the working directory.",
)
def sample(
    n: int, seed: int, by: str | None, first: date | None, last: date | None, output: Path | None
) -> None:
    """Draw a random sample of submissions with a verdict for manual review, with weights.

    Fill in `label` (genuine, fraud or unsure), `decided_at` and, for a fraud, `attack`, and put the file into
    labels/ in the landing zone. Weights and strata say what each row stands for: leave them as they are. The
    file does not say what DeepXL decided, so that it does not influence the reviewer.
    """
    drawn = draw(load_settings().kyc_warehouse, n, seed, By(by) if by else None, first, last)
    file = output or Path(f"sample-{seed}.csv")
    if file.exists():
        raise UsageError(f"{display_path(file)} exists and may have labels: choose another --output")
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(LABEL_FIELDS)
    for row in drawn.rows:
        rows.writerow([row.submission_id, "", SOURCE, "", "", repr(row.weight), row.stratum])
    try:
        with replacing(file, mode=0o600) as target:
            target.write(text.getvalue().encode())
    except OSError as error:
        raise KycError(
            f"cannot write {display_path(file)} ({error.strerror}): choose another --output"
        ) from error
    click.echo(
        f"{len(drawn.rows)} of {plural(drawn.population, 'submission')} with a verdict, from "
        f"{plural(drawn.strata, 'stratum', 'strata')}, written to {display_path(file)}"
    )
    click.echo("fill in label, decided_at and, for a fraud, attack; then put the file into labels/")
