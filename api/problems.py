"""Errors as RFC 9457 problem documents: one table from error class to status, one shape for all of them.

Invariant: `code` is stable and tells clients what to do; a bug answers 500 and says nothing about the inside.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolTimeout
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adapters.command_handler import OutcomeUnknownError, UnavailableError
from adapters.master_keys import MasterKeysAwayError
from adapters.writer import QueueFullError
from domain.errors import (
    DomainError,
    IdempotencyKeyReusedError,
    InvalidCommandError,
    NotFoundError,
    PermissionDeniedError,
    RuleError,
    VersionConflictError,
)

log = logging.getLogger(__name__)

STATUS: dict[type[DomainError], int] = {
    NotFoundError: 404,
    PermissionDeniedError: 403,
    InvalidCommandError: 422,
    RuleError: 409,
    VersionConflictError: 412,
    IdempotencyKeyReusedError: 422,
}
"""Status by domain error; a subclass has its base's."""

TITLES = {
    400: "Malformed request",
    401: "Not authenticated",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Refused by a rule",
    412: "Changed in the meantime",
    413: "Too large",
    415: "Unsupported media type",
    422: "Invalid request",
    500: "Internal error",
    503: "Unavailable for the moment",
}


class Problem(BaseModel):
    """An error, as RFC 9457 has it, with a stable code."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[dict[str, Any]] | None = None


class UnauthenticatedError(Exception):
    """No valid access token came with the request."""


def status_of(error: DomainError) -> int:
    """The HTTP status that stands for ``error``."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document as a response."""
    body = {"type": f"/problems/{code}", "title": TITLES.get(status, "Error"), "status": status}
    body |= {"code": code, "detail": detail} | more
    return Response(orjson.dumps(body), status, headers, "application/problem+json")


async def on_domain_error(_: Request, error: Exception) -> Response:
    """A refusal."""
    assert isinstance(error, DomainError)
    more = {"version": error.actual, "since": error.since} if isinstance(error, VersionConflictError) else {}
    headers = {"ETag": f'"{error.actual}"'} if isinstance(error, VersionConflictError) else None
    return problem(status_of(error), error.code, error.detail, headers, **more)


async def on_unauthenticated(_: Request, __: Exception) -> Response:
    """401, with the scheme to use."""
    detail = "Send a valid access token as 'Authorization: Bearer …'; make one with: conversas token create"
    return problem(401, "unauthenticated", detail, {"WWW-Authenticate": "Bearer"})


async def on_invalid(_: Request, error: Exception) -> Response:
    """What is wrong with the request, place by place, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {"in": [str(part)[:100] for part in e["loc"]], "what": e["type"], "message": e["msg"][:1000]}
        for e in error.errors()[:20]
    ]
    return problem(422, "invalid-request", "The request does not fit its description; see 'errors'.", errors=errors)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """What the framework itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return problem(422, "invalid-request", "The body is not valid JSON.")
    code = {
        404: "not-found",
        405: "method-not-allowed",
        408: "too-slow",
        413: "too-large",
        415: "unsupported-media-type",
    }.get(error.status_code, "refused")
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, code, str(error.detail), headers)


async def on_unavailable(_: Request, error: Exception) -> Response:
    """A dependency is down or overloaded: come again."""
    code, retry_after = "unavailable", "1"
    detail = "The database cannot be reached; try again in a moment."
    if isinstance(error, MasterKeysAwayError):
        detail = f"Personal data cannot be opened now: {error}; try again in a moment."
    elif isinstance(error, UnavailableError):
        detail = str(error)
        if isinstance(error, QueueFullError):
            code = "overloaded"
        elif isinstance(error, OutcomeUnknownError):
            code = "outcome-unknown"
    return problem(503, code, detail, {"Retry-After": retry_after})


async def on_too_slow(_: Request, __: Exception) -> Response:
    """A query was stopped at its time limit, so that others are not kept waiting."""
    detail = "This takes longer than a query may; narrow the filter or the period."
    return problem(503, "query-too-slow", detail, {"Retry-After": "60"})


async def on_broken_off(_: Request, __: Exception) -> Response:
    """The client went away in the middle of its request: nobody reads this, and nothing was done."""
    return problem(400, "broken-off", "The request ended before its body did.")


async def on_bug(_: Request, error: Exception) -> Response:
    """A bug: logged in full, told in short."""
    log.error("unhandled error", exc_info=error)
    return problem(500, "internal-error", "Something went wrong on our side; nothing more is said here on purpose.")


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    DomainError: on_domain_error,
    UnauthenticatedError: on_unauthenticated,
    RequestValidationError: on_invalid,
    HTTPException: on_http_exception,
    UnavailableError: on_unavailable,
    psycopg.errors.QueryCanceled: on_too_slow,
    psycopg.OperationalError: on_unavailable,
    PoolTimeout: on_unavailable,
    MasterKeysAwayError: on_unavailable,
    ClientDisconnect: on_broken_off,
    Exception: on_bug,
}


async def answer_to(request: Request, error: Exception) -> Response:
    """The problem document for ``error``, by the nearest of its classes."""
    return await next(_HANDLERS[cls] for cls in type(error).__mro__ if cls in _HANDLERS)(request, error)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error as a problem document."""
    for cls, handler in _HANDLERS.items():
        app.add_exception_handler(cls, handler)
