"""The service with a fault in its pages: `python broken_pages.py`. For the canaries of the tests in the browser.

What is broken is told by the header `Break` of each request; without one a page is as it should be, but for its scope:
every query finds what is anywhere in the workspace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from api.__main__ import main
from api.pages import page as pages
from projections import filter_sql

INTO_MAIN: dict[str, str] = {
    "inline": "<script>1</script>",
    "handler": '<p onclick="1">x</p>',
    "style": '<p style="color: red">x</p>',
    "console": "<script>console.error('broken')</script>",
    "host": '<img src="https://elsewhere.example/x.png" alt="">',
    "native": '<form action="/views"><button>x</button></form>',
    "axe": '<img src="/nothing.png">',
    "pale": '<p><font color="#c4c8cc">pale where it is light</font></p>',
    "dark": '<p><font color="#333a44">dark where it is dark</font></p>',
    "wide": '<img src="/nothing.png" alt="" width="3000" height="1">',
}
"""What stands in the page that should not."""
WITHOUT_POLICY = {"console", "host", "unescaped"}
"""What the policy would keep from happening, so it is left out too: the check itself must find it."""


def broken(page: pages.Page, template: str, status: int = 200, **context: Any) -> Response:
    """`Page.render`, broken as the request says."""
    how = page.request.headers.get("break", "")
    environment = pages._environment(page.language)
    if how == "unescaped":
        environment = environment.overlay(autoescape=False)
    html = environment.get_template(template).render(page=page, f=page.formats, **context)
    html = html.replace("</main>", INTO_MAIN.get(how, "") + "</main>")
    headers = {
        name: value for name, value in pages.HEADERS.items() if "Policy" not in name or how not in WITHOUT_POLICY
    }
    return Response(html, status, headers, "text/html; charset=utf-8")


if __name__ == "__main__":
    seeing: Callable[..., Any] = filter_sql.visible
    filter_sql.visible = lambda caller, *_: seeing(caller)[:1]
    pages.Page.render = broken  # type: ignore[method-assign]
    sys.argv[1:] = ["serve"]
    main()
