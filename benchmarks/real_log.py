"""The real log (a service desk's changes, `../shared/data`) imported once per run; where it is not there, the sample.

Invariant: what the parts that use it measure on is the same log, whichever of them runs first.
"""

import lzma
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from uuid import UUID

from adapters.command_handler import CommandHandler
from adapters.importers import import_file
from adapters.importers.loading import Lines
from benchmarks.measuring import Bench, Sample, Stopwatch
from benchmarks.workload import keys

ROOT = Path(__file__).parents[1]
WHOLE = ROOT.parent / "shared" / "data" / "servicenow_incidents.csv.xz"
SAMPLE = ROOT / "tests" / "data" / "servicenow_sample.csv"
QUICK_ROWS = 12_000
SAMPLE_TIMES = 300
"""The sample is small: it is imported into so many workspaces."""
QUICK_SAMPLE_TIMES = 30


@dataclass(frozen=True, slots=True)
class RealLog:
    """A database with the imported log and empty read models."""

    conninfo: str
    path: Path
    source: str
    rows: int
    """Rows of the file, over all workspaces that it was imported into."""
    rejected: int
    sample: Sample
    """The import; it counts events."""


@cache
def real_log(bench: Bench) -> RealLog:
    """Import it, the first time that it is asked for."""
    conninfo = bench.database(read_models=True)
    path, times, source = _source(bench)
    with Lines(path) as content:
        lines = sum(1 for _ in content)
    events, rejected = 0, 0
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler:
        watch = Stopwatch(bench.postmaster)
        for number in range(times):
            report = import_file(handler, UUID(int=number + 1), path, "servicenow")
            events, rejected = events + report.events, rejected + report.rejected_count
        sample = watch.sample(events)
    return RealLog(conninfo, path, source, (lines - 1) * times, rejected, sample)


def _source(bench: Bench) -> tuple[Path, int, str]:
    """The file, how often to import it, and what it is called."""
    if not WHOLE.exists():
        times = QUICK_SAMPLE_TIMES if bench.is_quick else SAMPLE_TIMES
        return SAMPLE, times, f"tests/data/{SAMPLE.name} into {times} workspaces"
    if not bench.is_quick:
        return WHOLE, 1, WHOLE.name
    part = bench.directory / "part.csv"
    with lzma.open(WHOLE) as whole:
        part.write_bytes(b"".join(islice(whole, QUICK_ROWS + 1)))
    return part, 1, f"the first {QUICK_ROWS:,} rows of {WHOLE.name}"
