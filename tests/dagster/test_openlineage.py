"""OpenLineage through `dagster-openlineage`: its event log, configured as the guide says, over a real run."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.resources import Pipeline
from tests.conftest import Landing
from tests.dagster.conftest import DAILY
from tests.receiver import Receiver, receiving

DAY = "2024-09-08"
GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
# The package uses deprecated names of Dagster.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server for OpenLineage events."""
    with receiving(Receiver()) as receiver:
        yield receiver


def test_a_run_sends_its_tables_and_checks_and_no_person(
    receiver: Receiver,
    landing: Landing,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = receiver.bodies
    home = tmp_path / "home"
    home.mkdir()
    block = GUIDE.partition("<!-- test: openlineage -->\n```yaml\n")[2].partition("```")[0]
    assert "/path/to/dagster_home" in block
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\n" + block.replace("/path/to/dagster_home", str(home))
    )
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    ids = landing.day(DAY, 2, lambda n: {"customerId": f"Jane-Roe-{n}"})
    with dg.DagsterInstance.get() as instance:
        job = build_defs(pipeline, publication=False).resolve_job_def("verify_and_publish")
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert instance.get_materialized_partitions(dg.AssetKey("verifications")) == {DAY}
    written = {output["name"] for event in events for output in event.get("outputs", [])}
    assert written >= {table.name for table in TABLES}
    jobs = {event["job"]["name"] for event in events if "job" in event}
    assert "verification_responses__checks" in jobs
    sent = json.dumps(events)
    assert "Jane-Roe" not in sent
    assert not [id_ for id_ in ids if id_ in sent]
