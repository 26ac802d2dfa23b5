"""The project's own rules, which no linter knows."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kyc_pipeline"
STAGES = ("ingest", "verify", "flatten", "analyze")
KNOWS_DAGSTER = {"orchestration", "cli", "definitions.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))
TOP_LEVEL = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


@cache
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
    assert len(DECISIONS) > 10


def test_only_the_outermost_layer_knows_dagster() -> None:
    inner = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in KNOWS_DAGSTER]
    assert not [path for path in inner if "dagster" in {name.partition(".")[0] for name in imports(path)}]


def test_the_import_rules_and_contributing_know_every_folder_and_module() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers, dagster = pyproject["tool"]["importlinter"]["contracts"]
    names = [name.strip() for layer in layers["layers"] for name in layer.split("|")]
    assert sorted(names) == sorted(f"kyc_pipeline.{name}" for name in TOP_LEVEL)
    knows = {f"kyc_pipeline.{name.removesuffix('.py')}" for name in KNOWS_DAGSTER}
    assert set(dagster["source_modules"]) == set(names) - knows
    assert not any("ignore_imports" in contract for contract in (layers, dagster))
    described = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")
    layout = next(block for block in described if block.lstrip().startswith("cli "))
    assert set(re.findall(r"\w+", layout)) >= TOP_LEVEL


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_every_decision_has_a_status_a_date_and_a_place_in_the_list(path: Path) -> None:
    title, _, status, *_ = path.read_text(encoding="utf-8").splitlines()
    assert re.match(r"Status: (accepted|superseded by \d{4})\. Date: \d{4}-\d\d-\d\d\.", status)
    index = path.with_name("README.md").read_text(encoding="utf-8")
    assert f"- [{title.removeprefix('# ')}]({path.name})" in index


def test_nothing_private_of_dagster_is_used() -> None:
    private = {
        (path.relative_to(PACKAGE), name)
        for path in MODULES
        for name in imports(path)
        if re.match(r"dagster(_\w+)?\._", name)
    }
    # ADR 0011: Dagster has no public way to embed its webserver; tests/e2e/test_ui.py notices a change.
    ui = Path("cli/ui.py")
    assert not [use for use in private if use[0] != ui or not use[1].startswith("dagster._core.workspace.")]


def test_every_module_says_what_belongs_in_it() -> None:
    assert not [
        path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_only_the_client_calls_deepxl_and_only_alerts_the_webhook() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if {name.partition(".")[0] for name in imports(path)} & {"httpx", "httpx_aiohttp", "requests"}
    }
    client = {"deepxl/client.py", "deepxl/multipart.py", "deepxl/transport.py"}
    assert users == client | {"orchestration/alerts/channels.py"}
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
