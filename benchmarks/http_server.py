"""The application with one more route, a POST that does nothing: `python -m benchmarks.http_server PORT`.

Invariant: finding that route costs as much as finding a command's, for it stands just before one.
"""

import sys

import uvicorn
from fastapi.routing import APIRoute

from api import conversations
from api.app import create_app, settle
from api.settings import load
from api.supervisor import watch_supervisor

NEIGHBOUR = "/notes"


async def nothing() -> dict[str, str]:
    """Answer."""
    return {}


def main() -> None:
    """Serve as `conversas serve` does."""
    watch_supervisor()
    settings = load()
    assert settings.database_url is not None
    conversations.router.add_api_route("/{id}/nothing", nothing, methods=["POST"])
    routes = conversations.router.routes
    paths = [route.path if isinstance(route, APIRoute) else "" for route in routes]
    routes.insert(next(index for index, path in enumerate(paths) if path.endswith(NEIGHBOUR)), routes.pop())
    app = create_app(settings, settings.database_url)
    settle()
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
