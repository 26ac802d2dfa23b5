"""The project's own rules, which no linter knows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kyc_pipeline"
STAGES = ("ingest", "verify", "flatten", "analyze")
KNOWS_DAGSTER = {"orchestration", "cli", "definitions.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_neither_dagster_nor_another_stage(stage: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] == stage
    ]
    assert len(modules) > 5
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert set(modules) <= set(loaded)
    forbidden = {f"kyc_pipeline.{name}" for name in (*STAGES, "orchestration", "cli", "definitions")}
    forbidden = (forbidden | {"dagster"}) - {f"kyc_pipeline.{stage}"}
    assert not forbidden.intersection(loaded)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_outermost_layer_knows_dagster(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in KNOWS_DAGSTER:
        return
    assert not [name for name in imports(path) if name == "dagster" or name.startswith("dagster.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_private_of_dagster_is_used(path: Path) -> None:
    assert not [name for name in imports(path) if re.match(r"dagster(_\w+)?\._", name)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_belongs_in_it(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_only_the_client_calls_deepxl_and_only_alerts_the_webhook() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if {name.partition(".")[0] for name in imports(path)} & {"httpx", "httpx_aiohttp", "requests"}
    }
    client = {"deepxl/client.py", "deepxl/multipart.py", "deepxl/transport.py"}
    assert users == client | {"orchestration/alerts.py"}
    senders = {
        str(path.relative_to(PACKAGE)) for path in MODULES if "kyc_pipeline.deepxl.transport" in imports(path)
    }
    assert senders == {"deepxl/client.py"}


def test_only_the_ledger_talks_to_its_database() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.partition(".")[0] in {"sqlalchemy", "alembic"} for name in imports(path))
    }
    assert users
    assert all(user.startswith("ledger/") for user in users - {"erasure/ledger_store.py"})
