"""An OpenID Connect issuer on loopback: its keys, the documents that tell of them, and tokens of every kind.

Invariant: `Issuer.token` makes a genuine token unless it is told what to get wrong.
"""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

AUDIENCE = "https://conversas.example.com"
SUBJECT = "248289761001"
SIGNERS: dict[str, Any] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "RS512": RSAAlgorithm(RSAAlgorithm.SHA512),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def text_of(value: Any) -> bytes:
    """``value`` as JSON; bytes as they are."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def compact(header: Any, claims: Any, algorithm: str, key: Any) -> str:
    """A signed token; an algorithm that is none of `SIGNERS` is an HMAC with the bytes of ``key``."""
    signed = f"{base64url(text_of(header))}.{base64url(text_of(claims))}"
    if algorithm in SIGNERS:
        signature = SIGNERS[algorithm].sign(signed.encode(), key)
    else:
        signature = hmac.digest(key, signed.encode(), f"sha{algorithm[-3:]}")
    return f"{signed}.{base64url(signature)}"


class Issuer:
    """The issuer; ``mode`` is how it answers: well, down, slow, drip, moved, huge, nonsense."""

    def __init__(self) -> None:
        self.rsa, self.ec = rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP256R1())
        self.mode = "well"
        self.asked = 0
        self.keys = [self.jwk(self.rsa, "rsa-1"), self.jwk(self.ec, "ec-1")]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.discovery: dict[str, Any] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        """What a service is told of it."""
        return {"OIDC_ISSUER": self.url, "OIDC_AUDIENCE": AUDIENCE, "OIDC_JWKS_URL": f"{self.url}/keys"}

    @staticmethod
    def jwk(key: Any, id_: str, **more: Any) -> dict[str, Any]:
        """The public half of ``key`` as the issuer publishes it."""
        algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": id_, "use": "sig", **more}

    @property
    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def header(self, algorithm: str = "RS256", **more: Any) -> dict[str, Any]:
        """A header; what is None is left out."""
        key_id = "ec-1" if algorithm == "ES256" else "rsa-1"
        return present({"alg": algorithm, "typ": "at+jwt", "kid": key_id, **more})

    def claims(self, **more: Any) -> dict[str, Any]:
        """Claims; what is None is left out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": SUBJECT, "workspace": "demo"}
        return present({**usual, "iat": now, "nbf": now, "exp": now + 300, **more})

    def token(
        self, algorithm: str = "RS256", header: dict[str, Any] | None = None, key: Any = None, **more: Any
    ) -> str:
        """A token of this issuer; ``more`` are claims."""
        signer = key or (self.ec if algorithm == "ES256" else self.rsa)
        return compact(self.header(algorithm, **(header or {})), self.claims(**more), algorithm, signer)

    def _answer(self, path: str, _body: bytes, _headers: Any) -> tuple[int, dict[str, str], bytes]:
        if self.mode == "down":
            return 500, {}, b""
        if self.mode == "moved":
            return 302, {"Location": f"{self.url}/elsewhere"}, b""
        if self.mode == "huge":
            return 200, {}, b"[" + b"0," * 500_000 + b"0]"
        if self.mode == "nonsense":
            return 200, {}, b'{"keys": "none"}'
        if path == "/.well-known/openid-configuration":
            return 200, {}, json.dumps(self.discovery).encode()
        return 200, {}, json.dumps({"keys": self.keys}).encode()

    def _handler(issuer) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # the handler's own self is another
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                if issuer.mode == "slow":
                    time.sleep(30)
                given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, body = issuer._answer(self.path, given, self.headers)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                pieces = [body] if issuer.mode != "drip" else [bytes([byte]) for byte in body]
                for piece in pieces:
                    self.wfile.write(piece)
                    time.sleep(0.5 if issuer.mode == "drip" else 0)

            do_POST = do_GET  # noqa: N815  # so the server asks for it

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


def present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
