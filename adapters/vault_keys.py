"""Master keys that a key management service has: the transit engine of OpenBao or HashiCorp Vault wraps and unwraps.

https://openbao.org/api-docs/secret/transit

Invariant: a master key never leaves the service, and none is made there by us.
"""

import logging
import ssl
import weakref
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from adapters.master_keys import NOT_OPENED, MasterKeyError, MasterKeys, MasterKeysAwayError, NoMasterKeys, Wrapped

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
"""For an answer; the writer waits under the append lock."""
TYPES = {"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}
"""Keys that bind what they wrap to its owner, as associated data."""
MOST_AT_ONCE = 200
"""Keys in a request: the service takes no JSON of more than 1,000 strings, and each key is four."""


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
        weakref.finalize(self, self._client.close)

    def current(self) -> str:
        """The name of the key's latest version."""
        key = self._ask("GET", "keys")
        if key["type"] not in TYPES or key["derived"]:
            raise MasterKeyError(
                f"{self._path} at the key service ({'derived, ' * key['derived']}{key['type']}) cannot bind a contact's"
                " key to its contact: make a key of type aes256-gcm96, not derived"
            )
        return f"{self._path}:v{key['latest_version']}"

    def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> list[Wrapped]:
        """Each key for its owner, under the latest version."""
        given = [{"plaintext": _text(key), "associated_data": _text(owner)} for owner, key in keys]
        parts = [each["ciphertext"].split(":") for each in self._ask_each("encrypt", given)]
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
        opened = [b64decode(each["plaintext"]) for each in self._ask_each("decrypt", given)]
        keys = dict(zip(ours + others, opened + self._older.unwrap(others), strict=True))
        return [keys[each] for each in wrapped]

    def _ask_each(self, action: str, given: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for start in range(0, len(given), MOST_AT_ONCE):
            results += self._ask("POST", action, {"batch_input": given[start : start + MOST_AT_ONCE]})["batch_results"]
        return results

    def _ask(self, method: str, action: str, what: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The data of the answer.

        Raises `MasterKeyError` where the service says that it cannot be done, `MasterKeysAwayError` for all else.
        """
        try:
            headers = {"X-Vault-Token": self._token_file.read_text().strip()}
            response = self._client.request(method, f"{action}/{self._key}", headers=headers, json=what)
            answer = response.json()
        except (OSError, httpx.HTTPError, ValueError) as error:
            log.warning("the key service cannot be asked: %s", error or type(error).__name__)
            raise MasterKeysAwayError("the service that has the master key cannot be reached") from error
        data: dict[str, Any] = answer.get("data") or {}
        failed = [each["error"] for each in data.get("batch_results", ()) if "error" in each]
        reason = ", ".join(failed[:1] or answer.get("errors") or ["it says no more"])
        match response.status_code:
            case HTTPStatus.OK:
                return data
            case HTTPStatus.BAD_REQUEST if failed:
                raise MasterKeyError(f"{NOT_OPENED} ({reason})")
            case HTTPStatus.BAD_REQUEST | HTTPStatus.NOT_FOUND:
                raise MasterKeyError(f"the service has no master key {self._path} that does this ({reason})")
        log.warning("the key service answers %d: %s", response.status_code, reason)
        raise MasterKeysAwayError(f"the service that has the master key refuses to use it ({response.status_code})")


def _text(data: bytes) -> str:
    return b64encode(data).decode()
