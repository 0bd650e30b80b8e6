"""The master key at a key management service, a real one: what holds with a key in a file holds with it as well."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from databases import load_demo, prepare, project
from in_process import carry_out, serving
from key_service import POLICY, KeyService, key_service

from adapters import vault_keys as vault_keys_module
from adapters.command_handler import CommandHandler
from adapters.contact_keys import beside
from adapters.master_keys import (
    LocalMasterKeys,
    MasterKeyError,
    MasterKeys,
    MasterKeysAwayError,
    Wrapped,
    new_master_key,
)
from adapters.projector import Projector
from adapters.vault_keys import VaultMasterKeys
from api import demo
from api.settings import load
from domain.commands import Command, RegisterContact
from domain.events import ContactDetails

ONE, OTHER = b"owner one" * 3, b"owner two" * 3
KEYS = [(ONE, b"1" * 32), (OTHER, b"2" * 32), (ONE, b"3" * 32)]
TOKEN = "cvs_key-service-tests"  # of these tests alone


@pytest.fixture(scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyService]:
    with key_service(tmp_path_factory.mktemp("key-service")) as service:
        yield service


@pytest.fixture
def service(_service: KeyService) -> KeyService:
    """With a token that works."""
    _service.new_token()
    return _service


@pytest.fixture
def in_force(service: KeyService, monkeypatch: pytest.MonkeyPatch) -> KeyService:
    """The service, and settings that name it; the key of the other tests is an older one."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return service


def vault_keys(service: KeyService, key: str = "transit/conversas", **more: Any) -> VaultMasterKeys:
    return VaultMasterKeys(service.url, key, service.token_file, **{"ca_file": service.ca_file} | more)


@pytest.fixture(params=["file", "service"])
def master(request: pytest.FixtureRequest) -> MasterKeys:
    if request.param == "file":
        return LocalMasterKeys.parse(new_master_key())
    return vault_keys(request.getfixturevalue("service"))


def query(conninfo: str, statement: str) -> list[Any]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_keys_are_unwrapped_in_their_order_and_nothing_of_them_is_told(master: MasterKeys) -> None:
    wrapped = master.wrap(KEYS)
    assert [each.owner for each in wrapped] == [owner for owner, _ in KEYS]
    assert {each.master for each in wrapped} == {master.current()}
    assert master.unwrap(wrapped) == [key for _, key in KEYS]
    assert master.unwrap(wrapped[::-1]) == [key for _, key in KEYS[::-1]]
    assert not any(key[:8] in each.key for each, (_, key) in zip(wrapped, KEYS, strict=True))
    assert len({each.key for each in [*wrapped, *master.wrap(KEYS)]}) == 6, "the same key twice must not look the same"
    assert master.wrap([]) == master.unwrap([]) == []


def test_more_keys_than_a_service_takes_at_once(master: MasterKeys) -> None:
    keys = [(ONE, number.to_bytes(32)) for number in range(1_001)]
    assert master.unwrap(master.wrap(keys)) == [key for _, key in keys]


def test_a_key_opens_for_its_owner_only_and_where_one_does_not_none_does(master: MasterKeys) -> None:
    good, other = master.wrap(KEYS[:2])
    altered = [
        good._replace(owner=OTHER),
        good._replace(key=good.key[:-1] + bytes([good.key[-1] ^ 1])),
        good._replace(key=other.key),
        good._replace(key=b""),
        good._replace(master="0123456789abcdef"),
        good._replace(master="transit/another:v1"),
        good._replace(master="transit/conversas:v999"),
        good._replace(master="transit/conversas:"),
    ]
    for each in altered:
        with pytest.raises(MasterKeyError):
            master.unwrap([other, each])


def test_canary_without_their_owners_keys_open_for_anybody(service: KeyService) -> None:
    class Careless(VaultMasterKeys):
        def _ask_each(self, action: str, given: Any) -> list[dict[str, Any]]:
            return super()._ask_each(action, [each | {"associated_data": ""} for each in given])

    careless = Careless(service.url, "transit/conversas", service.token_file, ca_file=service.ca_file)
    [wrapped] = careless.wrap(KEYS[:1])
    assert careless.unwrap([wrapped._replace(owner=OTHER)]) == [KEYS[0][1]]


def test_no_key_is_made_up_at_the_service_and_one_that_knows_no_owner_is_refused(service: KeyService) -> None:
    service.new_token('path "transit/*" { capabilities = ["read", "create", "update"] }')
    with pytest.raises(MasterKeyError, match="no master key transit/missing"):
        vault_keys(service, "transit/missing").current()
    service.ask("POST", "transit/keys/by-letters", type="rsa-2048")
    service.ask("POST", "transit/keys/from-another", derived=True)
    for name, kind in (("by-letters", "rsa-2048"), ("from-another", "derived, aes256-gcm96")):
        with pytest.raises(MasterKeyError, match=rf"transit/{name} at the key service \({kind}\) cannot bind"):
            vault_keys(service, f"transit/{name}").current()
    with pytest.raises(MasterKeyError, match="no master key transit/missing"):
        vault_keys(service, "transit/missing").wrap(KEYS)
    assert "missing" not in service.ask("LIST", "transit/keys")["data"]["keys"]


class Answering:
    """A service that answers what it should not: so many bytes of it at a time, each after so many seconds."""

    def __init__(self, status: int, body: bytes, *, pause: float = 0.0, at_once: int = 1_000_000) -> None:
        self._head = b"HTTP/1.1 %d Yes\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._body, self._pause, self._at_once = body, pause, at_once
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.asked += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1_000_000)
            connection.sendall(self._head)
            for start in range(0, len(self._body), self._at_once):
                time.sleep(self._pause)
                connection.sendall(self._body[start : start + self._at_once])


RESULT = '{"data": {"batch_results": [%s]}}'
SECRET = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I="


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        *((200, body, MasterKeysAwayError) for body in ("", "null", "[]", '"ok"', "{}", '{"data": null}', "<html>")),
        *((200, RESULT % some, MasterKeysAwayError) for some in ("", "{}", "{}, {}", "null", '{"plaintext": 1}')),
        (200, RESULT % f'{{"plaintext": "{SECRET}"}}, {{"plaintext": ["{SECRET}"]}}', MasterKeysAwayError),
        (200, RESULT % '{"plaintext": "!!!"}', MasterKeyError),
        (200, RESULT % '{"plaintext": "QUJD"}', MasterKeyError),
        (200, RESULT % '{"error": "no"}', MasterKeyError),
        (404, '{"message": "no backend"}', MasterKeysAwayError),
        (404, '{"errors": []}', MasterKeyError),
        (503, '["x"]', MasterKeysAwayError),
        (503, '{"errors": ["Vault is sealed"]}', MasterKeysAwayError),
        (307, "", MasterKeysAwayError),
    ],
)
def test_an_answer_that_is_none_says_nothing_of_a_key(
    service: KeyService, status: int, body: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with Answering(status, body.encode()) as other:
        keys = VaultMasterKeys(other.url, "transit/conversas", service.token_file)
        with pytest.raises(error):
            keys.unwrap([Wrapped("transit/conversas:v1", b"x" * 60, ONE)])
    assert SECRET not in caplog.text


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_and_not_asked_for_again_at_once(
    service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_keys_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(vault_keys_module, "REST_SECONDS", 0.5)
    with Answering(200, b" " * 50 + b"{}", pause=0.1, at_once=1) as other:
        keys = VaultMasterKeys(other.url, "transit/conversas", service.token_file)
        for waited in (0.5, 0.0, 0.5):
            began = time.monotonic()
            with pytest.raises(MasterKeysAwayError):
                keys.unwrap([Wrapped("transit/conversas:v1", b"x" * 60, ONE)])
            assert time.monotonic() - began < waited + 0.4
            time.sleep(0.3)
        assert other.asked == 2


def test_the_token_is_read_anew_and_need_do_no_more_than_the_guide_says(
    service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    keys = vault_keys(service)
    wrapped = keys.wrap(KEYS)
    guide = (Path(__file__).parents[2] / "docs" / "AUDIT.md").read_text()
    assert all(line in guide for line in POLICY.strip().splitlines())
    old = service.token_file.read_text().strip()
    for token in ("not-one-of-its-tokens", "", f"{old}\nand more", "\0", "não"):
        service.token_file.write_text(token)
        with pytest.raises(MasterKeysAwayError, match="cannot be used"):
            keys.unwrap(wrapped)
    service.token_file.unlink()
    with pytest.raises(MasterKeysAwayError, match="cannot be used"):
        keys.unwrap(wrapped)
    assert old not in caplog.text
    assert "there is no token in" in caplog.text
    assert "403: permission denied" in caplog.text
    service.new_token()
    service.ask("POST", "auth/token/revoke", token=old)
    assert keys.unwrap(wrapped) == [key for _, key in KEYS]


def test_nobody_else_is_told_the_token(service: KeyService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stranger in ({"ca_file": None}, {"ca_file": _another_authority(tmp_path)}):
        with pytest.raises(MasterKeysAwayError, match="cannot be used"):
            vault_keys(service, **stranger).current()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert vault_keys(service).current() == "transit/conversas:v1"
    with pytest.raises(MasterKeyError, match="No such file"):
        vault_keys(service, ca_file=tmp_path / "missing.pem")


def _another_authority(tmp_path: Path) -> Path:
    with key_service(_made(tmp_path / "another")) as another:
        (tmp_path / "another.pem").write_bytes(another.ca_file.read_bytes())
    return tmp_path / "another.pem"


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


# In the whole service


@pytest.fixture
def loaded(database: str) -> str:
    """The demo, with the master key that the settings name."""
    prepare(database)
    load_demo(database, TOKEN)
    project(database)
    return database


def master_keys_of(database: str) -> set[str]:
    """With which ones contacts' keys are wrapped."""
    return {name for (name,) in query(beside(database), "select distinct master_key_id from contact_keys")}


def conversas(database: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CONVERSAS_DATABASE_URL": database, "COLUMNS": "200"} | settings
    command = [sys.executable, "-m", "api", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def texts(database: str) -> list[str]:
    """All that was written in the demo, over HTTP."""

    async def ask() -> list[str]:
        async with serving(database) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            listed = (await client.get("/v1/conversations")).json()["items"]
            answers = [await client.get(f"/v1/conversations/{each['id']}/messages") for each in listed]
            return [item["text"] for answer in answers for item in answer.json()["items"]]

    return asyncio.run(ask())


def test_at_the_service_the_key_goes_from_version_to_version_and_the_old_ones_can_go(
    in_force: KeyService, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vault_keys(in_force).current()
    assert master_keys_of(loaded) == {first}
    said = texts(loaded)
    assert said
    wrapped = vault_keys(in_force).wrap(KEYS)

    in_force.ask("POST", "transit/keys/conversas/rotate")
    latest = vault_keys(in_force).current()
    with closing(CommandHandler(loaded, keys_of(loaded))) as handler:
        carry_out(handler, demo.WORKSPACE, [registered("Nova")])
    assert master_keys_of(loaded) == {first, latest}, "what is new is wrapped with the new one at once"
    rotated = conversas(loaded, "keys", "rotate")
    assert (rotated.returncode, latest in rotated.stdout) == (0, True), rotated.stderr
    assert master_keys_of(loaded) == {latest}
    in_force.ask("POST", "transit/keys/conversas/config", min_decryption_version=int(latest.rpartition("v")[2]))
    with pytest.raises(MasterKeyError, match="disallowed by policy"):
        vault_keys(in_force).unwrap(wrapped)
    monkeypatch.delenv("CONVERSAS_MASTER_KEYS")
    assert texts(loaded) == said


def test_from_a_file_to_the_service(loaded: str, service: KeyService, monkeypatch: pytest.MonkeyPatch) -> None:
    said = texts(loaded)
    [before] = master_keys_of(loaded)
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    assert texts(loaded) == said, "both are in use until all is rotated"
    rotated = conversas(loaded, "keys", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    assert master_keys_of(loaded) == {vault_keys(service).current()} != {before}
    monkeypatch.delenv("CONVERSAS_MASTER_KEYS")
    assert texts(loaded) == said
    for name in service.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVERSAS_MASTER_KEYS", new_master_key())
    with closing(keys_of(loaded)) as keys, pytest.raises(MasterKeyError, match="was not given"):
        keys.find([(demo.WORKSPACE, demo.CONTACT)])


def registered(name: str) -> tuple[UUID, Command]:
    id_ = uuid4()
    return id_, RegisterContact(contact_id=id_, details=ContactDetails(name=name))


@pytest.mark.usefixtures("in_force")
def test_while_the_service_hangs_nothing_is_changed_shown_or_halted_and_then_all_goes_on(
    service: KeyService, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_keys_module, "PATIENCE_SECONDS", 0.3)
    said = texts(loaded)
    with closing(CommandHandler(loaded, keys_of(loaded))) as handler:
        carry_out(handler, demo.WORKSPACE, [registered("Ana")])
    [(head,)] = query(loaded, "select max(position) from events")

    async def ask() -> None:
        async with serving(loaded) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            known = (await client.post("/v1/contacts", json={"name": "Bruno"})).json()["id"]
            conversation = (await client.get("/v1/conversations")).json()["items"][0]["id"]
            with service.frozen():
                refused = await client.post("/v1/contacts", json={"name": "Carla"})
                unread = await client.get(f"/v1/conversations/{conversation}/messages")
                done = await client.post("/v1/conversations", json={"channel": "phone", "contact_id": known})
                listed = await client.get("/v1/conversations")
            for answer in (refused, unread):
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
                assert "the service that has the master key" in answer.json()["detail"]
                assert service.url not in answer.text
            assert "nothing was changed" in refused.json()["detail"]
            assert (done.status_code, listed.status_code) == (201, 200), "what needs no key that is not known goes on"
            await asyncio.sleep(vault_keys_module.REST_SECONDS)
            assert (await client.post("/v1/contacts", json={"name": "Carla"})).status_code == 201

    asyncio.run(ask())
    topics = query(loaded, f"select topic from events where position > {head} order by position")
    assert topics == [("contact-registered.v1",), ("conversation-opened.v1",), ("contact-registered.v1",)]

    stop = threading.Event()
    with closing(keys_of(loaded)) as keys, closing(Projector(loaded, keys=keys)) as projector:
        with service.frozen():
            with pytest.raises(MasterKeysAwayError):
                projector.catch_up()
            running = threading.Thread(target=projector.run, args=(stop,))
            running.start()
            time.sleep(1)
        deadline = time.monotonic() + 30
        while query(loaded, f"select from projection_positions where position < {head + 3} and name not like '%/%'"):
            assert time.monotonic() < deadline, "it goes on by itself"
            time.sleep(0.1)
        stop.set()
        running.join()
    assert query(loaded, "select halted from projection_positions where halted is not null") == []
    assert texts(loaded) == said


@pytest.mark.parametrize("command", [("serve",), ("project",), ("keys", "rotate"), ("replay", "--check")])
@pytest.mark.usefixtures("in_force")
def test_what_is_wrong_is_said_at_the_start_with_the_settings_to_look_at(
    service: KeyService, loaded: str, command: tuple[str, ...]
) -> None:
    service.token_file.write_text("not-one-of-its-tokens")
    ended = conversas(loaded, *command)
    assert ended.returncode == 1
    assert (
        ended.stderr.strip()
        .splitlines()[-1]
        .startswith(
            (
                "CONVERSAS_VAULT_URL, CONVERSAS_VAULT_KEY or CONVERSAS_VAULT_TOKEN_FILE: ",
                "the service that has the master",
            )
        )
    ), ended.stderr
    assert "it answers 403" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"VAULT_URL": "https://bao.example"},
            "CONVERSAS_VAULT_TOKEN_FILE: .*set it together with CONVERSAS_VAULT_URL",
        ),
        ({"VAULT_TOKEN_FILE": "token"}, "CONVERSAS_VAULT_TOKEN_FILE: .*set it together with CONVERSAS_VAULT_URL"),
        ({"VAULT_URL": "http://bao.example", "VAULT_TOKEN_FILE": "token"}, "CONVERSAS_VAULT_URL: "),
        ({"VAULT_KEY": "../sys/seal"}, "CONVERSAS_VAULT_KEY: "),
        ({"VAULT_KEY": "conversas"}, "CONVERSAS_VAULT_KEY: "),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"CONVERSAS_{name}", value)
    with pytest.raises(SystemExit, match=named):
        load()
