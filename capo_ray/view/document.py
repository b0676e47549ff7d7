"""The HTML document: one file with its style and script in it, so that nothing is loaded from anywhere."""

from __future__ import annotations

import html
import json
from functools import cache
from importlib import resources
from typing import Any

SCRIPTS = (
    "dom.js",
    "chart.js",
    "overview.js",
    "groups.js",
    "group.js",
    "whatif.js",
    "critic.js",
    "actors.js",
    "flow.js",
    "app.js",
)


def build_document(*, nonce: str = "", embedded: Any = None, policy: str = "") -> str:
    """The whole page; with `embedded` figures it asks no server, and `policy` says so to the browser."""
    page = read_asset("index.html")
    mark = f' nonce="{nonce}"' if nonce else ""
    scripts = "\n".join(read_asset(name) for name in SCRIPTS)
    data = ""
    if embedded is not None:
        data = f'<script type="application/json" id="embedded"{mark}>{_in_script(embedded)}</script>'
    meta = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n' if policy else ""
    page = page.replace("<!--style-->", f"{meta}<style{mark}>\n{read_asset('style.css')}</style>")
    return page.replace("<!--data-->", data).replace("<!--script-->", f"<script{mark}>\n{scripts}</script>")


def _in_script(value: Any) -> str:
    """JSON that no text in it can end: a response may well hold `</script>`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def read_asset(name: str) -> str:
    """A file of the page."""
    return resources.files("capo_ray.view").joinpath("static", name).read_text(encoding="utf-8")
