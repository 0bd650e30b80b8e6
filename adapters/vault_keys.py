"""Master keys that a key management service has: the transit engine of OpenBao or HashiCorp Vault wraps and unwraps.

https://openbao.org/api-docs/secret/transit

Invariant: a master key never leaves the service, and none is made there by us.
"""

import logging
import re
import ssl
import weakref
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import httpx
from pydantic import Base64Bytes, BaseModel, Field, ValidationError

from adapters.master_keys import (
    KEY_BYTES,
    NOT_OPENED,
    MasterKeyError,
    MasterKeys,
    MasterKeysAwayError,
    NoMasterKeys,
    Wrapped,
)

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""For a whole answer, name look-up and all: the writer waits under the append lock."""
REST_SECONDS = 1.0
"""How long nobody asks after that was not enough."""
REQUESTS_AT_ONCE = 8
TYPES = {"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}
"""Keys that bind what they wrap to its owner, as associated data."""
MOST_AT_ONCE = 200
"""Keys in a request: the service takes no JSON of more than 1,000 strings, and each key is four."""
_TOKEN = re.compile("[!-~]+")
_CIPHERTEXT = "^vault:v[0-9]+:[A-Za-z0-9+/]+=*$"


class _Result(BaseModel):
    """Of one key."""

    error: str = ""
    ciphertext: Annotated[str | None, Field(pattern=_CIPHERTEXT)] = None
    plaintext: Base64Bytes | None = None


class _Data(BaseModel):
    batch_results: list[_Result] = []
    type: str = ""
    derived: bool = False
    latest_version: int = 0


class _Answer(BaseModel):
    """What the service answers, as far as we read it."""

    data: _Data | None = None
    errors: list[str] | None = None


class VaultMasterKeys:
    """The versions of one key at the service, and ``older`` master keys, which are still to be rotated away.

    ``path`` is the engine's mount and the key's name, as in ``transit/conversas``. The token is read from its file for
    each request: whoever renews it need not tell us. Safe to use from several threads.
    """

    def __init__(
        self, url: str, path: str, token_file: Path, *, ca_file: Path | None = None, older: MasterKeys | None = None
    ) -> None:
        self._path = path
        mount, _, self._key = path.rpartition("/")
        self._token_file = token_file
        self._older: MasterKeys = older or NoMasterKeys()
        try:
            trusted = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise MasterKeyError(f"{ca_file}: {error.strerror or error}") from None
        # No proxy that the environment may name: the token is for the service alone.
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/v1/{mount}", timeout=PATIENCE_SECONDS, verify=trusted, trust_env=False
        )
        # The client's own patience begins anew with each byte that comes.
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, "key-service")
        weakref.finalize(self, self._client.close)
        weakref.finalize(self, self._threads.shutdown, wait=False)
        self._is_there = False
        self._rests_until = 0.0

    def current(self) -> str:
        """The name of the key's latest version."""
        key = self._ask("GET", "keys")
        if key.type not in TYPES or key.derived:
            raise MasterKeyError(
                f"{self._path} at the key service ({'derived, ' * key.derived}{key.type}) cannot bind a contact's"
                " key to its contact: make a key of type aes256-gcm96, not derived"
            )
        self._is_there = True
        return f"{self._path}:v{key.latest_version}"

    def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> list[Wrapped]:
        """Each key for its owner, under the latest version."""
        if keys and not self._is_there:  # or a token that may do more than it need would make one up
            self.current()
        given = [{"plaintext": _text(key), "associated_data": _text(owner)} for owner, key in keys]
        parts = [(each.ciphertext or "").split(":") for each in self._ask_each("encrypt", given)]
        return [
            Wrapped(f"{self._path}:{version}", b64decode(key), owner)
            for (owner, _), (_vault, version, key) in zip(keys, parts, strict=True)
        ]

    def unwrap(self, wrapped: Sequence[Wrapped]) -> list[bytes]:
        """The keys, by the service or, what it has not wrapped, by the older master keys."""
        begin = f"{self._path}:"
        ours = [each for each in wrapped if each.master.startswith(begin)]
        others = [each for each in wrapped if not each.master.startswith(begin)]
        given = [
            {
                "ciphertext": f"vault:{each.master.removeprefix(begin)}:{_text(each.key)}",
                "associated_data": _text(each.owner),
            }
            for each in ours
        ]
        opened = [each.plaintext or b"" for each in self._ask_each("decrypt", given)]
        if any(len(key) != KEY_BYTES for key in opened):
            raise MasterKeyError(NOT_OPENED)
        keys = dict(zip(ours + others, opened + self._older.unwrap(others), strict=True))
        return [keys[each] for each in wrapped]

    def _ask_each(self, action: str, given: Sequence[Mapping[str, str]]) -> list[_Result]:
        results: list[_Result] = []
        for start in range(0, len(given), MOST_AT_ONCE):
            part = given[start : start + MOST_AT_ONCE]
            made = self._ask("POST", action, {"batch_input": part}).batch_results
            if len(made) != len(part) or any(each.ciphertext is None and each.plaintext is None for each in made):
                raise self._away("it answers for other keys than it was asked for")
            results += made
        return results

    def _ask(self, method: str, action: str, what: Mapping[str, Any] | None = None) -> _Data:
        """The data of the answer.

        Raises `MasterKeyError` where the service says that it cannot be done, `MasterKeysAwayError` for all else.
        """
        if monotonic() < self._rests_until:
            raise self._away("it did not answer a moment ago")
        try:
            status, answer = self._threads.submit(self._request, method, action, what).result(PATIENCE_SECONDS)
        except (TimeoutError, httpx.TimeoutException):
            self._rests_until = monotonic() + REST_SECONDS
            raise self._away("it does not answer in time") from None
        except ValidationError:  # whose text quotes the answer
            raise self._away("its answer is not what it should be") from None
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from None
        failed = [each.error for each in answer.data.batch_results if each.error] if answer.data else []
        reason = ", ".join(failed[:1] or answer.errors or ["it says no more"])
        if failed and status in {HTTPStatus.OK, HTTPStatus.BAD_REQUEST}:
            raise MasterKeyError(f"{NOT_OPENED} ({reason})")
        if answer.errors is not None and status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}:
            raise MasterKeyError(f"the service has no master key {self._path} that does this ({reason})")
        if status != HTTPStatus.OK or answer.data is None:
            raise self._away(f"it answers {status}: {reason}")
        return answer.data

    def _request(self, method: str, action: str, what: Mapping[str, Any] | None) -> tuple[int, _Answer]:
        token = self._token_file.read_text().strip()
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"there is no token in {self._token_file}")
        response = self._client.request(method, f"{action}/{self._key}", headers={"X-Vault-Token": token}, json=what)
        return response.status_code, _Answer.model_validate_json(response.content)

    def _away(self, reason: str) -> MasterKeysAwayError:
        """What is raised where nothing is known of any key; who asks is not told of the inside."""
        log.warning("the key service cannot be used: %s", reason)
        return MasterKeysAwayError("the service that has the master key cannot be used")


def _text(data: bytes) -> str:
    return b64encode(data).decode()
