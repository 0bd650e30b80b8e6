"""What the fault tests share lies beside them in `rig`, which their child processes import too."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("rig")

from rig import Postgres  # noqa: E402  # not before its assertions are to be rewritten

from adapters import sealing  # noqa: E402


@pytest.fixture(scope="session")
def _mortal_postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="conversas-mortal-") as directory, Postgres(Path(directory)) as server:
        yield server


@pytest.fixture
def mortal_postgres(_mortal_postgres: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL that a test may kill; running and with an empty log at each test's start."""
    _mortal_postgres.make_database()
    yield _mortal_postgres
    _mortal_postgres.start()


@pytest.fixture(scope="module")
def stored_in_clear() -> Iterator[None]:
    """What says something of a contact is stored as it is: for tests that alter a log, or copy it without its keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "says_something", lambda _topic, _data: False)
        yield
