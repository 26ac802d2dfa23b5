"""Without an extra, what needs it ends with one line that names it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kyc_pipeline.cli.dagster_home import EXTRAS, open_instance
from kyc_pipeline.errors import UsageError
from tests.e2e.servers import clean_environment

ROOT = Path(__file__).parents[2]
MAIN = """
import json, os, sys
for name in ("dagster_celery", "mcp", "prometheus_client", "psycopg", "s3fs"):
    sys.modules[name] = None
from kyc_pipeline.cli import main
for settings, command in json.loads(sys.argv[1]):
    os.environ.update(settings)
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
    for name in settings:
        del os.environ[name]
"""
"""Runs the commands one after the other in one process, in which no extra is installed."""
CHECK = ["ledger", "check"]
PLAN = ["plan", "--from", "2024-09-01", "--to", "2024-09-01"]
POSTGRES = "storage: {postgres: {postgres_url: 'postgresql://kyc@127.0.0.1/dagster'}}"
COMPUTE_LOGS = (
    "compute_logs: {module: dagster_aws.s3.compute_log_manager, class: S3ComputeLogManager, config: {}}"
)
OUR_CELERY = (
    "run_launcher: {module: kyc_pipeline.orchestration.celery_launcher, "
    "class: CancellingCeleryRunLauncher, config: {}}"
)
KUBERNETES = "run_launcher: {module: dagster_k8s, class: K8sRunLauncher, config: {}}"
CELERY = "run_launcher: {module: dagster_celery.launcher, class: CeleryRunLauncher, config: {}}"


def packages(extra: str) -> str:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return " ".join(pyproject["project"]["optional-dependencies"][extra])


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(CELERY)
    cases: list[tuple[str, str, dict[str, str], list[str]]] = [
        ("s3", "KYC_LAKE", {"KYC_LAKE": "s3://bucket/lake"}, PLAN),
        ("s3", "KYC_LANDING", {"KYC_LANDING": "s3://bucket/landing"}, PLAN),
        ("postgres", "KYC_LEDGER_URL", {"KYC_LEDGER_URL": "postgresql+psycopg://kyc@127.0.0.1/kyc"}, CHECK),
        ("mcp", "mcp", {}, ["mcp"]),
        ("metrics", "metrics", {}, ["metrics", "--port", "0"]),
        ("celery", "dagster.yaml", {"DAGSTER_HOME": str(tmp_path)}, ["daemon"]),
        ("celery", "dagster.yaml", {"DAGSTER_HOME": str(tmp_path)}, ["code-server"]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, json.dumps([case[2:] for case in cases])],
        env=clean_environment(tmp_path, KYC_HOME=str(tmp_path), PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["2"] * len(cases), done.stderr
    for line, (extra, setting, *_) in zip(done.stderr.splitlines(), cases, strict=True):
        assert line.startswith("kyc-pipeline: ")
        assert line.endswith(f"needs the extra `{extra}`: pip install 'kyc-pipeline[{extra}]'")
        assert setting in line


@pytest.mark.parametrize(
    ("absent", "extra", "configuration"),
    [
        ("dagster_postgres", "postgres", POSTGRES),
        ("dagster_aws", "s3", COMPUTE_LOGS),
        ("dagster_k8s", "k8s", KUBERNETES),
        ("dagster_celery", "celery", OUR_CELERY),
    ],
)
def test_a_missing_package_that_dagster_yaml_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, extra: str, configuration: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(configuration)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UsageError, match=rf"dagster\.yaml needs the extra `{extra}`: pip install "):
        open_instance()


def test_each_package_of_dagster_is_in_the_extra_that_the_error_names() -> None:
    assert [
        module for module, extra in EXTRAS.items() if module.replace("_", "-") not in packages(extra)
    ] == []
