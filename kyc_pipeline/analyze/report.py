"""The report: one self-contained HTML page made from the published warehouse.

The page needs no network: the plotting library is inside it. What it shows is in :mod:`sections`.
"""

import json
import os
import secrets
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from kyc_pipeline.analyze.publish import open_warehouse


def write_report(warehouse: Path, destination: Path) -> None:
    """Writes the page from the build that is published now; `destination` is replaced in one step.

    Raises :class:`KycError` if there is no warehouse.
    """
    # Altair takes over a second to import, which whoever only loads the definitions should not pay.
    from kyc_pipeline.analyze.sections import read_page

    with open_warehouse(warehouse) as connection:
        page = read_page(connection)
    specs = {figure.id: figure.spec for section in page.sections for figure in section.figures}
    text = _template().render(page=page, bundle=_bundle(), specs=_json(specs), explorer=_json(page.explorer))
    destination.parent.mkdir(parents=True, exist_ok=True)
    draft = destination.with_name(f".{destination.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, destination)
    finally:
        draft.unlink(missing_ok=True)


def _json(value: object) -> Markup:
    """JSON that is safe inside a `<script>` element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_number)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no `<` is left in it


def _as_number(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"not a value of a chart: {type(value).__name__}")


@lru_cache(maxsize=1)
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, safe inside a `<script>` element."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))  # noqa: S704 - it is the library's own


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
