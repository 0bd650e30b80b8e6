"""`conversas`, or `python -m api`: the command line."""

import psycopg

from adapters.master_keys import MasterKeyError, MasterKeysAwayError
from api.cli import erasing, feeding, serving, tending, tokens, verifying, workspaces
from api.cli.shell import app
from api.settings import PREFIX

__all__ = ["erasing", "feeding", "main", "serving", "tending", "tokens", "verifying", "workspaces"]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise SystemExit(f"The database cannot be reached: {reason}\nIs {PREFIX}DATABASE_URL right?") from None
    except (MasterKeyError, MasterKeysAwayError) as error:
        raise SystemExit(f"{error}. Are {PREFIX}MASTER_KEY_FILE and {PREFIX}VAULT_… right?") from None


if __name__ == "__main__":
    main()
