"""Style sheet, scripts and icon of the pages, from the package.

Invariant: an address holds a hash of all of them, so that what one has may be kept for ever, and is never old.
"""

import gzip
import hashlib
from functools import cache
from mimetypes import guess_type
from pathlib import Path

from fastapi import APIRouter, Request
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


@cache
def _packed(name: str) -> bytes:
    return gzip.compress(_files()[name], mtime=0)


def takes_gzip(request: Request) -> bool:
    """Whether whoever asks can unpack gzip."""
    return "gzip" in request.headers.get("accept-encoding", "")


@router.get("/static/{version}/{name}")
async def static_file(request: Request, version: str, name: str) -> Response:
    """One of the files; modules find each other beside themselves, so all have one version."""
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, "There is no such file.")
    headers = {
        "Cache-Control": _FOR_EVER if version == _version() else "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Vary": "Accept-Encoding",
    }
    if takes_gzip(request):
        content, headers = _packed(name), headers | {"Content-Encoding": "gzip"}
    return Response(content, 200, headers, guess_type(name)[0] or "application/octet-stream")
