"""Sessions: ours are told from others, and end."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import jwt
import pytest

from adapters.command_handler import UnavailableError
from api.sessions import LIFE, Sessions, session_key
from api.settings import Settings

KEY = "a-key-of-thirty-two-characters-or-more"
WORKSPACE, TOKEN = UUID(int=1), UUID(int=2)
SESSIONS = Sessions(Settings(session_key=KEY))
CLAIMS = {
    "ws": str(WORKSPACE),
    "sub": str(TOKEN),
    "jti": "x",
    "exp": datetime.now(UTC) + timedelta(hours=1),
    "aud": "conversas-pages",
}


def test_a_session_that_was_sealed_is_the_same_when_opened() -> None:
    session = SESSIONS.begin(WORKSPACE, TOKEN)
    assert SESSIONS.opened(SESSIONS.sealed(session)) == session
    assert SESSIONS.opened(jwt.encode(CLAIMS, KEY)) is not None


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "x",
        "a.b.c",
        jwt.encode(CLAIMS, "another-key-of-thirty-two-characters"),
        jwt.encode(CLAIMS, None, "none"),
        jwt.encode(CLAIMS, KEY * 2, "HS512"),
        jwt.encode(CLAIMS | {"aud": "others"}, KEY),
        jwt.encode(CLAIMS | {"exp": datetime.now(UTC) - timedelta(seconds=1)}, KEY),
        jwt.encode(CLAIMS | {"sub": "nobody"}, KEY),
        *(jwt.encode({name: value for name, value in CLAIMS.items() if name != left_out}, KEY) for left_out in CLAIMS),
    ],
)
def test_what_is_no_session_of_ours_opens_nothing(value: str | None) -> None:
    assert SESSIONS.opened(value) is None


def test_a_session_ends_after_its_life_or_with_its_token() -> None:
    now = datetime.now(UTC)
    assert SESSIONS.begin(WORKSPACE, TOKEN).expires_at <= now + LIFE
    soon = (now + timedelta(minutes=5)).replace(microsecond=0)
    assert SESSIONS.begin(WORKSPACE, TOKEN, soon).expires_at == soon


def test_a_forms_token_is_the_tokens_whose_session_it_is() -> None:
    first, again = SESSIONS.begin(WORKSPACE, TOKEN), SESSIONS.begin(WORKSPACE, TOKEN)
    other = SESSIONS.begin(WORKSPACE, UUID(int=3))
    given = SESSIONS.form_token(first)
    assert SESSIONS.is_form_token(first, given)
    assert SESSIONS.is_form_token(again, given)
    assert not SESSIONS.is_form_token(other, given)
    assert not Sessions(Settings(session_key=KEY[::-1])).is_form_token(first, given)
    changed = [
        given[:place] + ("1" if given[place] == "0" else "0") + given[place + 1 :] for place in range(len(given))
    ]
    for none in (*changed, "", given[1:], given[:-1], given + "0", "é" * len(given)):
        assert not SESSIONS.is_form_token(first, none)


def test_each_form_has_another_token_so_that_no_length_tells_it() -> None:
    session = SESSIONS.begin(WORKSPACE, TOKEN)
    one, two = SESSIONS.form_token(session), SESSIONS.form_token(session)
    assert not any(one[place : place + 8] in two for place in range(len(one) - 8))


def test_a_key_is_made_up_once_for_this_user_only_and_none_that_was_named(tmp_path: Path) -> None:
    settings = Settings(data_directory=tmp_path / "data")
    assert session_key(settings) == session_key(settings) != session_key(Settings(data_directory=tmp_path))
    [file] = (tmp_path / "data").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert session_key(Settings(session_key=KEY)) == KEY
    file.write_text("")
    with pytest.raises(UnavailableError):
        session_key(settings)
    with pytest.raises(UnavailableError):
        session_key(Settings(data_directory=file))
    with pytest.raises(ValueError, match="session_key"):
        Settings(session_key="short")
