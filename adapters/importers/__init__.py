"""Bringing in what happened elsewhere: files of past changes become commands, and commands become events.

Invariant: importing the same file twice adds nothing; an import that was killed continues when it is run again.
"""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

from adapters.importers import ndjson, servicenow
from adapters.importers.loading import Handles, ImportStoppedError, Lines, Loader, Progress
from adapters.importers.report import Rejected, Report
from adapters.importers.servicenow_rows import header_of

__all__ = ["ImportStoppedError", "Progress", "Rejected", "Report", "Source", "import_file"]

log = logging.getLogger(__name__)

Source = Literal["ndjson", "servicenow"]
"""Formats that can be read: our own (`docs/IMPORT.md`), and the service-desk log."""


def import_file(
    handler: Handles,
    workspace_id: UUID,
    path: Path,
    source: Source = "ndjson",
    progress: Progress = lambda _done, _total, _events: None,
) -> Report:
    """Import the file at ``path`` (plain or ``.xz``) into a workspace; what became of it.

    ``progress`` is called after each transaction with bytes read, bytes in all (of the file as it lies there) and
    events appended. Raises `ImportStoppedError` when the file cannot be read on or the log cannot be written; what
    was imported until then stays, and running it again continues.
    """
    with Lines(path) as lines:
        now = datetime.now(UTC)
        read = servicenow.read if source == "servicenow" else ndjson.read
        loader = Loader(handler, workspace_id, source, lambda events: progress(lines.bytes_done, lines.size, events))
        report = loader.load(read(lines, workspace_id, now))
        if source == "ndjson" and report.is_all_rejected:
            with suppress(ImportStoppedError):
                header_of(lines)
                report.hint = "This looks like a service-desk log; did you mean --from servicenow?"
    log.info("imported %s: %d events in %.1f s", path, report.events, report.seconds)
    return report
