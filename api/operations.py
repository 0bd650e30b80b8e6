"""For those who run it: is it alive, is it ready, how is it doing.

Invariant: nothing here needs a token and nothing here tells of a workspace.
"""

from typing import Annotated, Any

import psycopg
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, Field
from starlette.responses import Response

from adapters.kafka_status import STATUS_QUERY, Publishers
from api.queries import as_json, fetch_status

router = APIRouter(tags=["operations"])

LOG_HEAD = Gauge("conversas_log_head", "The log's last position")
PROJECTION_POSITION = Gauge("conversas_projection_position", "Events projected", ["read_model"])
PROJECTION_HALTED = Gauge("conversas_projection_halted", "1 while a projection is halted", ["read_model"])
WRITER_QUEUE = Gauge("conversas_writer_queue", "Commands that wait for the next transaction")

_STATE = """
select name, position, halted, (select coalesce(max(position), 0) from events) as head from projection_positions
where name not like '%%/%%' -- those of projections written for the eventsourcing library"""


class Projection(BaseModel):
    """How far a projection is."""

    position: int
    behind: int
    halted: str | None


class Readiness(BaseModel):
    """Whether requests can be served, and how far the projections are."""

    ready: bool
    reason: Annotated[str | None, Field(description="why not")]
    projections: dict[str, Projection]


@router.get("/healthz", summary="Is the process alive?", response_model=dict[str, bool])
async def healthz() -> Response:
    """Yes, if this answers."""
    return as_json({"alive": True})


@router.get("/readyz", summary="Can it serve?", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(request: Request) -> Response:
    """Whether the database answers, the writer runs and no projection is halted."""
    reason: str | None = None
    projections: dict[str, Any] = {}
    try:
        rows = await fetch_status(request, _STATE)
    except (psycopg.Error, PoolTimeout):
        reason = "the database cannot be reached"
    else:
        for row in rows:
            behind = row["head"] - row["position"]
            projections[row["name"]] = {"position": row["position"], "behind": behind, "halted": row["halted"]}
        halted = sorted(name for name, projection in projections.items() if projection["halted"])
        if halted:
            reason = f"halted: {', '.join(halted)}; after the cause is gone they go on by themselves"
        elif not request.app.state.writer.alive():
            reason = "the writer has stopped"
    response = as_json({"ready": reason is None, "reason": reason, "projections": projections})
    response.status_code = 200 if reason is None else 503
    return response


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and gauges in the Prometheus text format."""
    for row in await fetch_status(request, _STATE):
        LOG_HEAD.set(row["head"])
        PROJECTION_POSITION.labels(row["name"]).set(row["position"])
        PROJECTION_HALTED.labels(row["name"]).set(row["halted"] is not None)
    WRITER_QUEUE.set(request.app.state.writer.depth())
    publishers = CollectorRegistry(auto_describe=False)
    publishers.register(Publishers(await fetch_status(request, STATUS_QUERY)))
    return Response(generate_latest() + generate_latest(publishers), media_type=CONTENT_TYPE_LATEST)
