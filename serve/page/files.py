"""The page's files, and the headers under which a browser runs nothing else."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).with_name("static")
HEADERS = {
    # A second judge, whose address a person types, may be anywhere; all else comes from here.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "font-src 'self'; img-src 'self'; connect-src 'self' http: https:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Asked for again each time, answered with 304: an update shows at once.
    "cache-control": "no-cache",
}
mimetypes.add_type("font/woff2", ".woff2")
mimetypes.add_type("text/javascript", ".js")  # whatever the machine's own table says


class PageFiles(StaticFiles):
    """Scripts, styles and fonts of the page."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As the framework answers, with the page's headers."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def page_response() -> Response:
    """The page itself."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)
