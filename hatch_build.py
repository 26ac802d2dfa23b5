"""Bundles the report's plotting library when the package is built or installed.

It is Vega, Vega-Lite and Vega-Embed in one script. Bundling takes seconds of processor time, so a publication
must not do it, and `vl_convert` has 80 MB, so a wheel contains the script instead.
"""

from pathlib import Path
from typing import Any

import vl_convert
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "kyc_pipeline/analyze/report/templates/vega.js"


class PlottingLibrary(BuildHookInterface[Any]):
    """Writes the script, which Git ignores."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by Hatch before each build, also an editable one."""
        (Path(self.root) / SCRIPT).write_text(bundle(), encoding="utf-8")
        build_data["artifacts"].append(SCRIPT)


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
