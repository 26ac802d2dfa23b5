"""The report: one self-contained HTML page made from the published warehouse.

The page needs no network: style, scripts and the plotting library are inside it, and its policy allows no
other script. :mod:`contents` decides what it shows, the templates how it looks and behaves.
"""

import base64
import hashlib
import json
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from kyc_pipeline.analyze.publish import (
    Place,
    has_stamp,
    objects_at,
    open_warehouse,
    stamp,
    time_of_build,
)
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.rules import LOW_N, Z_95

_TEMPLATES: Final = Path(__file__).parent / "templates"


def write_report(warehouse: Place, destination: Place) -> None:
    """Writes the page from the published build and replaces the one at `destination` atomically.

    The build's time becomes the file's modification time: see :mod:`up_to_date`.
    Raises :class:`KycError` if there is no warehouse.
    """
    if isinstance(destination, str):
        with objects_at(destination).new_page() as write:
            text, built_ns = _page(warehouse)
            write(text.encode(), built_ns)
        return
    text, built_ns = _page(warehouse)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with replacing(destination) as file:
        file.write(text.encode())
        file.flush()
        stamp(file.name, built_ns)


def has_report(place: Place, built_ns: int | None = None) -> bool:
    """Whether there is a report; with `built_ns`, one of this build that was not changed since."""
    if isinstance(place, str):
        return objects_at(place).has_page(built_ns)
    return place.exists() if built_ns is None else has_stamp(place, built_ns)


def report_url(place: Place) -> str:
    """The URL at which a browser finds the report."""
    return objects_at(place).page_url if isinstance(place, str) else place.absolute().as_uri()


def report_size(place: Place) -> int:
    """Bytes of the report."""
    return objects_at(place).page_size() if isinstance(place, str) else place.stat().st_size


def remove_old_reports(place: Place) -> None:
    """Removes what an object store may keep of earlier reports."""
    if isinstance(place, str):
        objects_at(place).remove_old_pages()


def _page(warehouse: Place) -> tuple[str, int]:
    """The page, and when its build began, in nanoseconds since the epoch."""
    # Not at load: Altair takes over a second to import.
    from kyc_pipeline.analyze.report.contents import read_page

    with open_warehouse(warehouse) as connection:
        page = read_page(connection)
        built_ns = time_of_build(connection)
    figures = [figure for section in page.sections for figure in section.figures]
    data = {
        "specs": {figure.id: figure.spec for figure in figures},
        "views": {
            figure.id: {key: [view.note, view.alt, view.empty] for key, view in figure.views.items()}
            for figure in figures
        },
        "periods": {period.key: period.shown for period in page.periods},
        "explorer": page.explorer,
        "z": Z_95,
        "low_n": LOW_N,
    }
    scripts = [own_text("vega.js"), own_text("report.js")]
    text = template("report.html").render(
        page=page,
        first=page.periods[0].key,
        low_n=LOW_N,
        style=own_text("report.css"),
        data=_json(data),
        scripts=scripts,
        script_hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
    )
    return text, built_ns


def _json(value: Any) -> Markup:
    """JSON that is safe inside a `<script>` element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_number)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no `<` is left in it


def _as_number(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"not a value of a chart: {type(value).__name__}")


def own_text(name: str) -> Markup:
    """A style or script of the package; it needs no escaping."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 - it is the package's own


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def template(name: str) -> jinja2.Template:
    """A template of the package, which escapes what it shows."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
