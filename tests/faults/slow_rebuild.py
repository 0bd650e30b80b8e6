"""A rebuild that is slow enough to be killed in its middle: a program, which writes a line per batch."""

import sys
import time

import psycopg

from adapters.projector import READ_MODELS, Projector
from adapters.rebuild import rebuild


def main(conninfo: str, name: str, batch_size: str, pause_seconds: str, how: str) -> None:
    """``in-place`` is the canary, which empties the live tables first."""
    model = next(model for model in READ_MODELS if model.name == name)

    def progress(position: int, _: int) -> None:
        print(position, flush=True)  # noqa: T201  # for the test that waits for it
        time.sleep(float(pause_seconds))

    if how == "beside":
        rebuild(conninfo, model, progress, batch_size=int(batch_size))
        return
    with psycopg.connect(conninfo) as connection:
        connection.execute(f"truncate {', '.join(model.tables)}")  # type: ignore[arg-type]
        connection.execute("update projection_positions set position = 0 where name = %s", (name,))
    Projector(conninfo, [model], batch_size=int(batch_size)).catch_up(progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
