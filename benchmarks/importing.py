"""How fast the log of a service desk is imported, with all rules, idempotency keys and durable commits."""

from benchmarks.measuring import Bench, table
from benchmarks.real_log import real_log


def run(bench: Bench) -> None:
    """Measure and print the table."""
    log = real_log(bench)
    sample = log.sample
    table(
        f"Import: {log.source}",
        (
            *("", "rows", "rejected", "events", "seconds", "rows/s", "events/s", "CPU µs/event, import"),
            "CPU µs/event, PostgreSQL",
        ),
        [
            (
                *("conversas import", f"{log.rows:,}", log.rejected, f"{sample.count:,}", sample.seconds),
                *(log.rows / sample.seconds, sample.rate),
                *(sample.cpu_microseconds, sample.postgres_cpu_microseconds),
            )
        ],
    )
