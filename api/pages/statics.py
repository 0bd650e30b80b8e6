"""Style sheet, scripts and icon of the pages, from the package.

Invariant: an address holds a hash of all of them, so that what one has may be kept for ever, and is never old.
"""

import hashlib
from functools import cache
from mimetypes import guess_type
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)
_DIRECTORY = Path(__file__).parent / "static"
_FOR_EVER = "public, max-age=31536000, immutable"


@cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(_DIRECTORY.iterdir()) if path.is_file()}


@cache
def _version() -> str:
    hashed = hashlib.sha256()
    for name, content in _files().items():
        hashed.update(f"{name} {len(content)} ".encode() + content)
    return hashed.hexdigest()[:16]


def address(name: str) -> str:
    """Where the file ``name`` is; raises `KeyError` where it is not."""
    assert _files()[name] is not None
    return f"/static/{_version()}/{name}"


@router.get("/static/{version}/{name}")
async def static_file(version: str, name: str) -> Response:
    """One of the files; modules find each other beside themselves, so all have one version."""
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, "There is no such file.")
    headers = {
        "Cache-Control": _FOR_EVER if version == _version() else "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Response(content, 200, headers, guess_type(name)[0] or "application/octet-stream")
