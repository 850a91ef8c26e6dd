"""Render the templates into one self-contained HTML file."""

import base64
import hashlib
import time
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tinyimnet.console import moment
from tinyimnet.files import read_text
from tinyimnet.report import formats

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, *, live: bool = False, **parts: Any) -> str:
    """Render a page with inline CSS and JavaScript; all text in `parts` is escaped.

    Args:
        template: file name in templates/ of a template that extends page.html.j2.
        live: whether the page reloads itself.
        parts: variables of the template.
    """
    script = read_text(TEMPLATES / "page.js")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(read_text(TEMPLATES / "style.css")),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            now=moment(time.time()),
            written=round(time.time()),
            live=live,
            **parts,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": formats.number}
    return environment
