"""All pages together, as part of the API's application."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api import problems
from api.pages import (
    bulk,
    contacts,
    conversation,
    filter_builder,
    history,
    listing,
    oidc_sign_in,
    overview,
    sign_in,
    statics,
    views,
)
from api.pages.page import error_page, is_for_people
from api.sessions import Sessions
from api.settings import Settings


def install(app: FastAPI, settings: Settings) -> None:
    """Serve the pages from ``app``; to be called after `problems.install`."""
    app.state.sessions = Sessions(settings)
    for module in (
        listing,
        filter_builder,
        views,
        bulk,
        conversation,
        contacts,
        history,
        overview,
        sign_in,
        oidc_sign_in,
        statics,
    ):
        app.include_router(module.router)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        if is_for_people(request):
            return await error_page(request, error)
        return await problems.on_http_exception(request, error)

    app.add_exception_handler(HTTPException, on_http_exception)
