"""An issuer at which people sign in: authorization code with PKCE, as OpenID Connect has it.

Invariant: it checks what an issuer has to, and answers as one, unless it is told what to get wrong.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from oidc_issuer import Issuer, base64url, compact, present

CLIENT_ID, CLIENT_SECRET = "conversas pages", "s3cret: 100% ours"
Answer = dict[str, Any]


class SignInIssuer(Issuer):
    """The issuer; ``subject`` is who sits at the browser, ``twist`` changes what is given for a code."""

    def __init__(self) -> None:
        super().__init__()
        self.discovery |= {
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "end_session_endpoint": f"{self.url}/end",
            "authorization_response_iss_parameter_supported": True,
        }
        self.subject = uuid4().hex
        self.redirect_uri = ""
        self.asked_for: dict[str, dict[str, str]] = {}
        """What was asked for, by code."""
        self.forget()

    def forget(self) -> None:
        """Get nothing wrong any more."""
        self.twist: Callable[[Answer, dict[str, str]], Any] = lambda answer, _: answer
        self.checks_pkce = self.codes_end = True
        self.mode = "well"

    def approve(self, address: str) -> dict[str, str]:
        """What the browser brings back once somebody has signed in at ``address``."""
        asked = dict(parse_qsl(urlsplit(address).query))
        wanted = {"client_id": CLIENT_ID, "redirect_uri": self.redirect_uri, "response_type": "code", "tenant": "1"}
        assert asked | wanted | {"code_challenge_method": "S256"} == asked
        assert "openid" in asked["scope"].split()
        code = uuid4().hex
        self.asked_for[code] = asked | {"subject": self.subject}
        return {"code": code, "state": asked["state"], "iss": self.url}

    def id_token(
        self, asked: dict[str, str], *, header: dict[str, Any] | None = None, key: Any = None, **claims: Any
    ) -> str:
        """The ID token of a sign-in; ``claims`` are said otherwise, None: not at all."""
        said = self.claims(aud=CLIENT_ID, sub=asked["subject"], nonce=asked["nonce"], nbf=None)
        head = self.header("RS256", typ="JWT") | (header or {})
        algorithm = "RS256" if head["alg"] == "none" else head["alg"]
        return compact(present(head), present(said | claims), algorithm, self.rsa if key is None else key)

    def _answer(self, path: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        at = urlsplit(path).path
        if self.mode != "well" or at not in {"/authorize", "/token", "/end"}:
            return super()._answer(path, body, headers)
        if at == "/token":
            status, answer = self._token(dict(parse_qsl(body.decode())), headers)
            return status, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if at == "/authorize":
            back = f"{self.redirect_uri}?{urlencode(self.approve(path))}"
            page = f'<title>Issuer</title><h1>Issuer</h1><a href="{html.escape(back)}">It is me</a>'
        else:
            page = f"<title>Issuer</title><h1>Bye</h1><p>{html.escape(path)}</p>"
        return 200, {"Content-Type": "text/html"}, page.encode()

    def _token(self, form: dict[str, str], headers: Any) -> tuple[int, Any]:
        named = base64.b64encode(urlencode({CLIENT_ID: CLIENT_SECRET}).replace("=", ":").encode()).decode()
        asked = self.asked_for.get(form.get("code", ""))
        if headers["Authorization"] != f"Basic {named}":
            return 401, {"error": "invalid_client"}
        if asked is None or form["redirect_uri"] != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        if self.codes_end:
            del self.asked_for[form["code"]]
        challenge = base64url(hashlib.sha256(form["code_verifier"].encode()).digest())
        if self.checks_pkce and challenge != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        access_token = uuid4().hex
        digest = hashlib.sha256(access_token.encode()).digest()
        id_token = self.id_token(asked, at_hash=base64url(digest[:16]))
        return 200, self.twist({"access_token": access_token, "token_type": "Bearer", "id_token": id_token}, asked)
