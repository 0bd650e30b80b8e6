"""Live, rebuilt and naive folds of the log agree, row for row, whatever happened and however it was batched."""

import random

import psycopg
import pytest
from agreement import check_that_all_agree
from contact_keyring import keys_of
from random_history import a_random_history

from adapters.projector import Projector, create_missing


@pytest.mark.parametrize("seed", range(4))
def test_any_history_in_any_batches_gives_the_naive_rows(database: str, seed: int) -> None:
    create_missing(database)
    a_random_history(database, seed, commands=600)
    projector = Projector(database, keys=keys_of(database), batch_size=random.Random(seed).choice([1, 3, 50, 1_000]))
    projector.catch_up()
    projector.close()
    assert check_that_all_agree(database) > 200


@pytest.mark.parametrize(
    "change",
    [
        "update listing set unread = unread + 1 where id = (select id from listing limit 1)",
        "update episodes set transfers = transfers + 1 where episode = 2",
        "delete from episodes where episode = 2",
        "delete from timeline where position = (select max(position) from timeline)",
        "update views set name = 'x'",
        "update contacts set terms = '{}'",
    ],
)
def test_the_comparison_notices_a_row_that_is_wrong(database: str, change: str) -> None:
    create_missing(database)
    a_random_history(database, 0, commands=300)
    projector = Projector(database, keys=keys_of(database))
    projector.catch_up()
    projector.close()
    with psycopg.connect(database) as connection:
        assert connection.execute(change).rowcount > 0
    with pytest.raises(AssertionError):
        check_that_all_agree(database)
