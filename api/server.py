"""The web server: uvicorn, which waits for requests to end when it stops.

Invariant: streams, which end only when told, are told before it waits.
"""

from socket import socket

import uvicorn
from fastapi import FastAPI

from api.settings import Settings
from api.streams import Streams


class Server(uvicorn.Server):
    """A server that lets go of the open streams when it stops."""

    def __init__(self, application: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http="httptools",
                access_log=False,
                log_level=settings.log_level,
                timeout_graceful_shutdown=10,
            )
        )
        self._application = application

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop."""
        streams: Streams = self._application.state.streams
        streams.live.end_all()
        await super().shutdown(sockets)
