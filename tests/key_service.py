"""A real key service: OpenBao with its transit engine, over TLS, and a token that may use one key and nothing else.

Invariant: it runs on the loopback interface, keeps nothing on disk but its certificates, and ends with the tests.
"""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT_TOKEN = "root-of-the-tests"  # for the service of these tests alone
POLICY = """
path "transit/keys/conversas" { capabilities = ["read"] }
path "transit/encrypt/conversas" { capabilities = ["update"] }
path "transit/decrypt/conversas" { capabilities = ["update"] }
"""
"""All that the service needs, as docs/AUDIT.md has it."""


@dataclass
class KeyService:
    """The running service; it may be frozen, but must go on in the end."""

    url: str
    ca_file: Path
    token_file: Path
    process: subprocess.Popen[bytes]
    admin: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        """Be its administrator."""
        self.admin = httpx.Client(
            base_url=f"{self.url}/v1",
            headers={"X-Vault-Token": ROOT_TOKEN},
            verify=ssl.create_default_context(cafile=self.ca_file),
            timeout=10,
        )

    def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """The answer to its administrator."""
        response = self.admin.request(method, path, json=body or None)
        assert response.is_success, (path, response.text)
        return dict(response.json()) if response.content else {}

    def new_token(self, policy: str = POLICY) -> str:
        """A token that may do what ``policy`` says, in force at once for who reads the file."""
        self.ask("PUT", "sys/policies/acl/conversas", policy=policy)
        token: str = self.ask("POST", "auth/token/create", policies=["conversas"])["auth"]["client_token"]
        self.token_file.write_text(f"{token}\n")
        return token

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which our service uses it."""
        return {
            "CONVERSAS_VAULT_URL": self.url,
            "CONVERSAS_VAULT_TOKEN_FILE": str(self.token_file),
            "CONVERSAS_VAULT_CA_FILE": str(self.ca_file),
        }

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes requests and answers none, for a block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def key_service(directory: Path) -> Iterator[KeyService]:
    """The service, with the key that our settings name by default."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [
        *(str(Path(sys.executable).parent / "bao"), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={directory}"),
        *(f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token", f"-dev-listen-address={address}"),
    ]
    environment = {"HOME": str(directory), "PATH": os.environ["PATH"]}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        authority = directory / "vault-ca.pem"
        while not authority.exists() and process.poll() is None:
            time.sleep(0.02)
        service = KeyService(f"https://{address}", authority, directory / "token", process)
        with service.admin:
            _wait(service, directory / "log")
            service.ask("POST", "sys/mounts/transit", type="transit")
            service.ask("POST", "transit/keys/conversas", type="aes256-gcm96")
            service.new_token()
            yield service
    finally:
        process.kill()
        process.wait()


def _wait(service: KeyService, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and service.process.poll() is None:
        with suppress(httpx.TransportError):
            if service.admin.get("sys/mounts").is_success:
                return
        time.sleep(0.05)
    raise AssertionError(f"the key service does not start:\n{log.read_text()}")
