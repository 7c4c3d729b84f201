"""Fills the templates of the pages. Texts are escaped; a value that is missing is an error."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.formatting import format_signed
from pipeline.report.render.svg import colour_class
from pipeline.report.render.table import anchor_id, find_text_columns

HERE = Path(__file__).parent


def _escape_value(value: Any) -> Markup:
    """Quotes as in the drawings: Jinja2 alone would write them in another way."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_escape_value,
    trim_blocks=True,
    lstrip_blocks=True,
)
for _filter in (anchor_id, colour_class, find_text_columns, format_signed):
    ENVIRONMENT.filters[_filter.__name__] = _filter


def render_document(template: str, script: str = "", **values: Any) -> str:
    """A page that loads nothing and runs one script of this folder, named by hash in its policy."""
    code = (HERE / script).read_text() if script else ""
    digest = b64encode(sha256(code.encode()).digest()).decode()
    return ENVIRONMENT.get_template(template).render(
        style=Markup((HERE / "page.css").read_text()),
        script=Markup(code),
        allowed=f"sha256-{digest}" if code else "none",
        **values,
    )
