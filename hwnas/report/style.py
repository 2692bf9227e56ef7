"""The style that all pages have: that of a run's page."""

from __future__ import annotations

import re
from importlib import resources

from markupsafe import Markup

_PAGE = "page.html.j2"


def page_style() -> Markup:
    """Return the style element of a run's page, for a page that looks alike."""
    source = (resources.files("hwnas.report") / _PAGE).read_text(encoding="utf-8")
    found = re.search(r"<style>.*?</style>", source, flags=re.DOTALL)
    assert found is not None
    return Markup(found[0])
