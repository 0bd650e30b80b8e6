"""`make bench`: measures part by part and prints a Markdown table for each, with the machine in the first line.

Invariant: whatever happens, no process and no file of a run is left behind.
"""

import argparse
import logging
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from time import monotonic

from benchmarks.measuring import bench, machine

PARTS = ("store", "http_commands", "bulk", "importing", "projecting", "publishing", "memory")
LONG_PARTS = ("listing", "as_of", "page", "feed", "feed_latency", "verifiable_log", "key_service")
"""Run only when they are named."""


def main() -> None:
    """Run the parts that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (none: all of these); {', '.join(LONG_PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: does it run, not how fast is it")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - {*PARTS, *LONG_PARTS})
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS + LONG_PARTS)}")
    logging.basicConfig(level="WARNING")
    # As an error would: everything that was begun is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = monotonic()
    with tempfile.TemporaryDirectory(prefix="conversas-bench-") as name:
        directory = Path(name)
        with bench(directory, is_quick=arguments.quick) as run:
            print(f"# Conversas, measured on {machine(run.url)}", flush=True)
            for part in arguments.parts or PARTS:
                import_module(f"benchmarks.{part}").run(run)
    print(f"\n{monotonic() - started:.0f} s in all.")


if __name__ == "__main__":
    main()
