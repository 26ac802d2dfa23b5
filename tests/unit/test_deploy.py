"""`deploy/`, as linters read it, its variables, and the commands that its guides tell people to type."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from kyc_pipeline.cli import cli
from kyc_pipeline.settings import Settings
from tests.helm import CHART, helm_program, resources
from tests.helm import rendered as template
from tests.optional import absent, optional_module

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALL_OPTIONS = ["retention.enabled=true", "webserver.ingress.enabled=true", "image.pullSecrets={registry}"]
DAGSTERS = {"DAGSTER_HOME", "DAGSTER_POSTGRES_URL", "DAGSTER_COMPUTE_LOGS_BUCKET"}
"""The variables that deploy/dagster.yaml and Dagster read."""
OTHERS = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"),
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"),
    *("PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"),
    *("PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"),
    *("KYC_IMAGE", "KYC_HOST_NAME"),  # what compose.yaml interpolates
    "KYC_BUILD_COMMIT",  # read by hatch_build.py
}
SETTINGS = {name.upper() for name in Settings.model_fields}


def tool(name: str) -> str:
    """The path of a linter."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return found or absent(name)


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return helm_program(tmp_path_factory.mktemp("helm"))


def run(*command: str | Path) -> str:
    """Standard output; a failure shows what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(helm: str, *values: str) -> str:
    return template(helm, *(f"--set={value}" for value in values))


def test_the_dockerfile() -> None:
    run(tool("hadolint"), DEPLOY / "Dockerfile")


def test_compose() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


@pytest.mark.parametrize("values", [[], ALL_OPTIONS], ids=["default", "all options"])
def test_the_chart(helm: str, tmp_path: Path, values: list[str]) -> None:
    run(helm, "lint", "--strict", CHART, *(f"--set={value}" for value in values))
    (tmp_path / "all.yaml").write_text(rendered(helm, *values), encoding="utf-8")
    run(tool("kubernetes-validate"), "--strict", tmp_path / "all.yaml")


def pods(all_resources: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod specifications of deployments and cron jobs."""
    for name, resource in all_resources.items():
        spec = resource.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield name, spec["template"]["spec"]


def test_no_pod_of_the_chart_runs_as_root_or_writes_to_its_image(helm: str) -> None:
    found = dict(pods(resources(rendered(helm, *ALL_OPTIONS))))
    assert len(found) == 5
    for pod in found.values():
        assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001}.items()
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["limits"]["memory"]


def test_there_is_one_code_server_and_one_daemon(helm: str) -> None:
    found = resources(rendered(helm))
    for name in ("code-server", "daemon"):
        spec = found[f"Deployment/kyc-{name}"]["spec"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def instance_of(text: str) -> dict[str, Any]:
    configuration = resources(text)["ConfigMap/kyc-dagster"]["data"]["dagster.yaml"]
    return dict(yaml.safe_load(configuration))


def test_the_charts_instance_is_that_of_deploy_with_a_run_launcher(helm: str) -> None:
    instance = instance_of(rendered(helm))
    launcher = instance.pop("run_launcher")
    assert instance == yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    pod = launcher["config"]["run_k8s_config"]["pod_spec_config"]
    assert pod["termination_grace_period_seconds"] > Settings.model_fields["deepxl_timeout_seconds"].default
    changed = instance_of(rendered(helm, "dagster.concurrency.runs.max_concurrent_runs=20"))
    assert changed["concurrency"]["runs"]["max_concurrent_runs"] == 20
    assert changed["concurrency"]["pools"] == instance["concurrency"]["pools"]


def assert_accepted(launcher: Any, config: Any) -> None:
    from dagster._config import process_config, resolve_to_config_type

    result = process_config(resolve_to_config_type(launcher.config_type()), config)
    assert result.success, result.errors


def test_dagster_accepts_the_run_launcher(helm: str) -> None:
    launcher = optional_module("dagster_k8s").K8sRunLauncher
    assert_accepted(launcher, instance_of(rendered(helm, *ALL_OPTIONS))["run_launcher"]["config"])


def test_dagster_accepts_the_guides_launcher_for_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    optional_module("dagster_celery")
    celery = optional_module("kyc_pipeline.orchestration.celery_launcher").CancellingCeleryRunLauncher
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://localhost")
    guide = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    [block] = [text for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "celery" in text]
    launcher = yaml.safe_load(block)["run_launcher"]
    assert (launcher["module"], launcher["class"]) == (
        celery.__module__,
        celery.__name__,
    )
    assert_accepted(celery, launcher["config"])


def test_the_instance_differs_from_the_tracked_one_only_in_its_stores() -> None:
    shared = yaml.safe_load((ROOT / "dagster_home" / "dagster.yaml").read_text(encoding="utf-8"))
    ours = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    assert {name: ours.pop(name)["config"]["bucket"] for name in ["compute_logs"]}
    assert set(ours.pop("storage")) == {"postgres"}
    assert ours == shared


def assigned(text: str) -> set[str]:
    return set(re.findall(r"^([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))


def variables(helm: str) -> dict[str, set[str]]:
    """The environment variables that each file sets."""
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    chart = resources(rendered(helm, *ALL_OPTIONS))
    services = yaml.safe_load(compose)["services"].values()
    containers = [container for _, pod in pods(chart) for container in pod["containers"]]
    return {
        "compose.yaml": {name for service in services for name in service.get("environment", {})}
        | set(re.findall(r"\$\{([A-Z_]+)", compose)),
        "Dockerfile": set(re.findall(r"(?:ENV|RUN|^ +)\s*([A-Z][A-Z_]+)=", dockerfile, re.MULTILINE)),
        "env.example": assigned((DEPLOY / "env.example").read_text(encoding="utf-8")),
        "secrets.example": assigned((DEPLOY / "secrets.example").read_text(encoding="utf-8")),
        "chart": {*chart["ConfigMap/kyc-env"]["data"]}
        | {entry["name"] for container in containers for entry in container.get("env", [])},
    }


def test_every_variable_is_a_setting_that_exists(helm: str) -> None:
    found = variables(helm)
    assert all(found.values())
    known = SETTINGS | DAGSTERS | OTHERS
    assert {file: sorted(names - known) for file, names in found.items() if names - known} == {}


def test_the_examples_have_what_deploy_needs() -> None:
    env, secrets = (
        (DEPLOY / name).read_text(encoding="utf-8") for name in ("env.example", "secrets.example")
    )
    secret = {
        name.upper() for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)
    }
    assert not assigned(env) & secret
    assert assigned(env) | assigned(secrets) | {"DAGSTER_HOME"} >= DAGSTERS
    assert "CHANGE-ME" in secrets


def commands() -> list[str]:
    """The lines after a prompt in the guides."""
    guides = ("README.md", "deploy/README.md", "docs/scale-out.md")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in guides]
    lines = re.sub(r" \\\n\s*", " ", "\n".join(texts)).splitlines()
    return [line.strip()[2:].partition("  #")[0] for line in lines if line.lstrip().startswith("$ ")]


def ours(words: list[str]) -> Iterator[list[str]]:
    """What follows each `kyc-pipeline` of a command line that is the command, not the image's name."""
    for position, (word, following) in enumerate(itertools.pairwise(words)):
        if word == "kyc-pipeline" and following not in ("kyc-pipeline", "."):
            yield words[position + 1 :]


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_every_command_of_the_guides_exists_with_its_options() -> None:
    context = click.Context(cli)
    checked = 0
    for line in commands():
        for command, *arguments in ours(shlex.split(line)):
            if command.startswith("-"):
                assert command in options(cli), line
                continue
            found = cli.get_command(context, command)
            assert found, line
            while isinstance(found, click.Group) and arguments:
                found = found.get_command(click.Context(found), arguments.pop(0))
                assert found, line
            used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
            assert used <= options(found) | {"--help"}, line
            checked += 1
    assert checked > 5


def test_containers_run_commands_that_exist(helm: str) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    chart = pods(resources(rendered(helm, *ALL_OPTIONS)))
    lines = [service.get("command") for service in services]
    lines += [container.get("args") for _, pod in chart for container in pod["containers"]]
    context = click.Context(cli)
    checked = []
    for words in filter(None, lines):
        if words[0] != "kyc-pipeline":
            continue
        found = cli.get_command(context, words[1])
        assert found, words
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options(found), words
        checked.append(words[1])
    assert sorted(checked) == sorted([*["code-server", "daemon", "ui"] * 2, "retention", "simulator"])


def test_paths_and_links_in_the_guides_exist() -> None:
    for guide in (DEPLOY / "README.md", ROOT / "docs" / "scale-out.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8"))
        assert [link for link in links if not (guide.parent / link).exists()] == []


def test_values_are_json_for_helm() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(values)) == values
    assert not [name for name, value in values["env"].items() if not isinstance(value, str)]
