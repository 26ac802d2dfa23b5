"""Creates the demo's labels: what made-up reviewers found out about a drawn sample."""

import csv
import io
import random
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Final

from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.vocabulary import LABEL_FIELDS, Attack, Label

_FRAUD: Final = {True: 0.02, False: 0.7}
"""Share of frauds among the verified, and among the declined."""
_UNSURE: Final = 0.03


def write_labels(
    file: Path, reviewed: Iterable[tuple[str, float, str, bool]], *, decided_on: date, seed: int
) -> None:
    """Writes a manifest with a label of each submission, given as (id, weight, stratum, verified).

    The same arguments give the same bytes.
    """
    chance = random.Random(f"labels/{seed}")
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(LABEL_FIELDS)
    for submission_id, weight, stratum, verified in reviewed:
        label = Label.FRAUD if chance.random() < _FRAUD[verified] else Label.GENUINE
        attack = chance.choice(list(Attack)).value if label is Label.FRAUD else ""
        if chance.random() < _UNSURE:
            label, attack = Label.UNSURE, ""
        decided_at = f"{decided_on.isoformat()}T00:00:00Z"
        writer.writerow(
            [submission_id, label.value, "manual-review", decided_at, attack, repr(weight), stratum]
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, durable=False) as content:
        content.write(target.getvalue().encode())
