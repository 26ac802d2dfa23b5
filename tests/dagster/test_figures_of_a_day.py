"""The figures of a day add up, wherever they are shown, also after a row that was sent has changed."""

from pathlib import Path
from typing import Any

import dagster as dg

from kyc_pipeline.analyze.build import build, open_draft
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
from tests.conftest import Landing
from tests.dagster.conftest import Run

DAY = "2024-09-08"
BACKFILL = ("backfill", "--no-publish", "--from", DAY, "--to", DAY)


def funnel(lake: Path, folder: Path) -> tuple[Any, ...]:
    """The day's received, rejected and accepted rows in a new warehouse."""
    draft = folder / "draft.duckdb"
    draft.unlink(missing_ok=True)
    build(Lake(str(lake)), draft, run_id="run")
    with open_draft(draft) as connection:
        [row] = connection.execute("SELECT received, rejected, accepted FROM submission_funnel").fetchall()
    return tuple(row)


def ingested(instance: dg.DagsterInstance) -> tuple[dict[str, Any], str]:
    """Figures of the day's latest ingest, and its line in the log."""
    event = instance.get_latest_materialization_event(dg.AssetKey(SUBMISSIONS.name))
    assert event is not None
    assert event.asset_materialization is not None
    figures = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    messages = [entry.user_message for entry in instance.all_logs(event.run_id)]
    [line] = [message for message in messages if message.startswith(f"{DAY}: ") and "manifest" in message]
    return figures, line


def test_a_row_that_was_sent_and_then_changed_or_removed_is_counted_once(
    landing: Landing, run: Run, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    good = [landing.submission(f"s-{n}", 2 * n) for n in range(6)]
    bad = {"submission_id": "bad"}
    landing.manifest(DAY, [*good, bad])
    assert run(*BACKFILL)[0] == 0

    changed = landing.submission("s-5", 99, {"customerId": "9"})
    for new_rows, rows, rejected in (([changed], 7, 2), ([], 6, 1)):
        landing.manifest(DAY, [*good[:5], *new_rows, bad])
        code, out, err = run(*BACKFILL)
        assert code == 0, err
        said = f"5 accepted, {rejected} rejected; 1 more sent earlier, whose rows were changed or removed"
        assert f"rows       {said}\n" in out
        figures, line = ingested(instance)
        assert line == f"{DAY}: {rows} rows in 1 manifest, {said}"
        assert figures["received"] == figures["accepted"] + figures["rejected"] == rows
        assert figures["dagster/partition_row_count"] == figures["accepted"] + figures["kept"] == 6
        # For analysts, seven rows were received, and six of them are submissions.
        assert funnel(tmp_path / "lake", tmp_path) == (7, 1, 6)
