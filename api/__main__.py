"""`conversas`, or `python -m api`: the command line."""

import psycopg

from api.cli import serving, tending, tokens
from api.cli.shell import app
from api.settings import PREFIX

__all__ = ["main", "serving", "tending", "tokens"]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise SystemExit(f"The database cannot be reached: {reason}\nIs {PREFIX}DATABASE_URL right?") from None


if __name__ == "__main__":
    main()
