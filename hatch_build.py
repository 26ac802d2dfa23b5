"""Bundles the report's plotting library when the package is built or installed, and records the commit.

The library is Vega, Vega-Lite and Vega-Embed in one script. Bundling takes seconds of processor time, so a
publication must not do it, and `vl_convert` has 80 MB, so a wheel contains the script instead.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import vl_convert
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "kyc_pipeline/analyze/report/templates/vega.js"
COMMIT = "kyc_pipeline/commit.txt"  # `kyc-pipeline --version` reads it


class BuildSteps(BuildHookInterface[Any]):
    """Writes the two files, which Git ignores."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by Hatch before each build, also an editable one."""
        (Path(self.root) / SCRIPT).write_text(bundle(), encoding="utf-8")
        build_data["artifacts"].append(SCRIPT)
        if version == "standard" and (commit := commit_of(self.root)):
            file = Path(self.directory) / "commit.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{commit}\n", encoding="utf-8")
            build_data["force_include"][str(file)] = COMMIT


def commit_of(root: str) -> str:
    """The commit in the environment (`KYC_BUILD_COMMIT`), in an sdist, or checked out; empty if unknown."""
    if commit := os.environ.get("KYC_BUILD_COMMIT", "").strip():
        return commit
    if (Path(root) / COMMIT).is_file():
        return (Path(root) / COMMIT).read_text(encoding="utf-8").strip()
    if not (Path(root) / ".git").exists():
        return ""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def bundle() -> str:
    """The script, safe inside a `<script>` element."""
    versions = (
        f"Vega {vl_convert.get_vega_version()}, "
        f"Vega-Lite {vl_convert.get_vegalite_versions()[-1]}, "
        f"Vega-Embed {vl_convert.get_vega_embed_version()}"
    )
    notice = f"/*! {versions} (BSD-3-Clause) with D3 (ISC); github.com/vega, github.com/d3 */\n"
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Browsers normalize line ends to \n before they compute the hash for the policy.
    return notice + script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")
