"""What an attacker might bring back from an issuer, or have somebody else bring back, to be let in.

Invariant: none of them is an answer to what this browser began, given by the issuer to us, once; each must be refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import httpx
import jwt
from forged_tokens import FOREIGN_RSA
from oidc_issuer import AUDIENCE
from oidc_sign_in_issuer import CLIENT_ID, CLIENT_SECRET, Answer, SignInIssuer

CALLBACK = "/sign-in/oidc/callback"
ATTEMPT, SESSION = "__Host-conversas-sign-in-", "__Host-conversas-session"
SESSION_KEY = "a-key-of-the-tests-with-more-than-32-characters"


class Browser:
    """Keeps cookies as one does."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.cookies: dict[str, str] = {}

    def get(self, path: str, **parameters: str) -> httpx.Response:
        return self.send("GET", path + (f"?{urlencode(parameters)}" if parameters else ""))

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        answer = self.client.request(method, path, headers=headers, follow_redirects=False, **more)
        for line in answer.headers.get_list("set-cookie"):
            for name, found in SimpleCookie(line).items():
                self.cookies[name] = found.value
                if not found.value or found["max-age"] == "0":
                    del self.cookies[name]
        return answer

    def begin(self, next_: str = "/") -> str:
        """Where the browser is sent to sign in."""
        return self.get("/sign-in/oidc", next=next_).headers["location"]

    @property
    def attempt(self) -> str:
        """The name of the cookie of the sign-in that it began last."""
        return [name for name in self.cookies if name.startswith(ATTEMPT)][-1]

    def is_in(self) -> bool:
        return self.get("/").status_code == 200


class Story:
    """A victim's browser and an attacker's, and the issuer that both sign in at."""

    def __init__(self, client: httpx.Client, issuer: SignInIssuer) -> None:
        self.client, self.issuer = client, issuer
        self.victim, self.attacker = Browser(client), Browser(client)

    def brought(self, browser: Browser | None = None) -> dict[str, str]:
        """What a browser, the victim's unless said otherwise, rightly brings back."""
        return self.issuer.approve((browser or self.victim).begin())

    def back(self, brought: dict[str, str]) -> httpx.Response:
        return self.victim.get(CALLBACK, **brought)

    def signed_in(self) -> Browser:
        """Somebody who is in."""
        browser = Browser(self.client)
        answer = browser.get(CALLBACK, **self.brought(browser))
        assert answer.status_code == 303, answer.text
        return browser


Attack = Callable[[Story], httpx.Response]


def bringing(change: Callable[[dict[str, str]], Any]) -> Attack:
    """The right answer, changed on its way."""

    def attack(story: Story) -> httpx.Response:
        brought = story.brought()
        return story.back(change(brought) or brought)

    return attack


def given(twist: Callable[[SignInIssuer, Answer, dict[str, str]], Any]) -> Attack:
    """The issuer gives something else for the code."""

    def attack(story: Story) -> httpx.Response:
        story.issuer.twist = lambda answer, asked: twist(story.issuer, answer, asked)
        return story.back(story.brought())

    return attack


def claiming(header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> Attack:
    """With an ID token that says something else."""
    return given(
        lambda issuer, answer, asked: (
            answer | {"id_token": issuer.id_token(asked, header=header, key=key(issuer) if key else None, **claims)}
        )
    )


def holding(cookie: Callable[[Story, str], str | None]) -> Attack:
    """The right answer, with another cookie."""

    def attack(story: Story) -> httpx.Response:
        brought = story.brought()
        name = story.victim.attempt
        made = cookie(story, story.victim.cookies.pop(name))
        if made is not None:
            story.victim.cookies[name] = made
        return story.back(brought)

    return attack


def resigned(key: str | None, algorithm: str, **more: Any) -> Attack:
    def cookie(_: Story, value: str) -> str:
        claims = jwt.decode(value, SESSION_KEY, ["HS256"], audience="conversas-sign-in")
        return jwt.encode(claims | more, key, algorithm)

    return holding(cookie)


def again(story: Story) -> httpx.Response:
    """Whoever saw cookie and answer brings both once more, to an issuer that takes codes again."""
    story.issuer.codes_end = False
    brought = story.brought()
    story.attacker.cookies |= story.victim.cookies
    assert story.back(brought).status_code == 303
    story.victim = story.attacker
    return story.back(brought)


def a_code_used_before(story: Story) -> httpx.Response:
    brought = story.brought()
    assert story.back(brought).status_code == 303
    story.victim.cookies.clear()
    return story.back(story.brought() | {"code": brought["code"]})


def injected(*, checks_pkce: bool) -> Attack:
    """The code of the attacker's sign-in, in the victim's."""

    def attack(story: Story) -> httpx.Response:
        story.issuer.checks_pkce = checks_pkce
        code = story.brought(story.attacker)["code"]
        return story.back(story.brought() | {"code": code})

    return attack


def swapped(story: Story) -> httpx.Response:
    """The victim, who is signing in, is sent to where the attacker's sign-in ends."""
    story.brought()
    return story.back(story.brought(story.attacker))


def as_session(story: Story) -> httpx.Response:
    story.victim.begin()
    story.victim.cookies[SESSION] = story.victim.cookies.pop(story.victim.attempt)
    return story.victim.get("/")


def unsaid(*names: str) -> Attack:
    return bringing(lambda brought: {name: value for name, value in brought.items() if name not in names})


def twice(name: str) -> Attack:
    def attack(story: Story) -> httpx.Response:
        brought = story.brought()
        pairs = [*brought.items(), (name, brought[name])]
        return story.victim.send("GET", f"{CALLBACK}?{urlencode(pairs)}")

    return attack


def posted(story: Story) -> httpx.Response:
    return story.victim.send("POST", CALLBACK, data=story.brought())


NOW = int(time.time())
ATTACKS: dict[str, Attack] = {
    # who began it
    "an answer that this browser never asked for": holding(lambda _, __: None),
    "the attacker's answer while the victim signs in": swapped,
    "the attacker's cookie": holding(
        lambda story, _: story.attacker.begin() and story.attacker.cookies[story.attacker.attempt]
    ),
    "state changed": bringing(lambda brought: brought | {"state": brought["state"][:-1] + "~"}),
    "state of the wrong length": bringing(lambda brought: brought | {"state": brought["state"] + "a"}),
    "state not in ASCII": bringing(lambda brought: brought | {"state": "é\u202e"}),
    "no state": unsaid("state"),
    "state empty": bringing(lambda brought: brought | {"state": ""}),
    "state twice": twice("state"),
    "code twice": twice("code"),
    "by POST": posted,
    # the cookie
    "cookie changed": holding(lambda _, value: value[:-2] + ("AA" if value[-2:] != "AA" else "BB")),
    "cookie signed by another key": resigned("another-key-of-thirty-two-characters", "HS256"),
    "cookie unsigned": resigned(None, "none"),
    "cookie too old": resigned(SESSION_KEY, "HS256", exp=NOW - 1),
    "cookie without an end": resigned(SESSION_KEY, "HS256", exp=2**70),
    "a session's cookie for a sign-in's": holding(lambda story, _: story.signed_in().cookies[SESSION]),
    "a sign-in's cookie for a session's": as_session,
    "cookie of nonsense": holding(lambda _, __: "a.b.c"),
    # once
    "cookie and answer once more": again,
    "a code that was used before": a_code_used_before,
    # the code
    "no code": unsaid("code"),
    "a code that nobody was given": bringing(lambda brought: brought | {"code": "guessed"}),
    "a very long code": bringing(lambda brought: brought | {"code": "x" * 9_000}),
    "the attacker's code": injected(checks_pkce=True),
    "the attacker's code at an issuer that forgets PKCE": injected(checks_pkce=False),
    "an error beside a code": bringing(lambda brought: brought | {"error": "access_denied"}),
    "an error that is markup": bringing(lambda brought: brought | {"error": "<script>alert(1)</script>"}),
    # mix-up
    "from another issuer": bringing(lambda brought: brought | {"iss": "https://evil.example"}),
    "from no issuer": unsaid("iss"),
    "from an issuer that is nearly ours": bringing(lambda brought: brought | {"iss": brought["iss"] + "/"}),
    # the ID token
    "nonce of another sign-in": claiming(nonce="another"),
    "no nonce": claiming(nonce=None),
    "nonces": given(
        lambda issuer, answer, asked: answer | {"id_token": issuer.id_token(asked, nonce=[asked["nonce"]])}
    ),
    "alg none": given(
        lambda issuer, answer, asked: (
            answer | {"id_token": f"{jwt.encode(unsigned(issuer, asked), None, 'none').rpartition('.')[0]}."}
        )
    ),
    "alg none in the header of a signed one": claiming({"alg": "none"}),
    "signed with our secret": claiming({"alg": "HS256"}, lambda _: CLIENT_SECRET.encode()),
    "signed with the public key as a secret": claiming({"alg": "HS256"}, lambda issuer: issuer.public_pem),
    "signed by another key": claiming(key=lambda _: FOREIGN_RSA),
    "signed by a key that it brings": claiming(
        {"jwk": SignInIssuer.jwk(FOREIGN_RSA, "rsa-1")}, key=lambda _: FOREIGN_RSA
    ),
    "a key that nobody knows": claiming({"kid": "unknown"}),
    "of another issuer": claiming(iss="https://evil.example"),
    "for another client": claiming(aud="another"),
    "for the API": claiming(aud=AUDIENCE),
    "for us and others": claiming(aud=[CLIENT_ID, "another"]),
    "given to another client": claiming(azp="another"),
    "expired": claiming(iat=NOW - 900, exp=NOW - 600),
    "from the future": claiming(iat=NOW + 7_200, exp=NOW + 7_500),
    "without an end": claiming(exp=None),
    "valid for a year": claiming(exp=NOW + 31_536_000),
    "an end that is text": claiming(exp="tomorrow"),
    "beside another access token": claiming(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "beside an access token of nonsense": claiming(at_hash=["x"]),
    "an access token for the API": given(
        lambda issuer, answer, asked: answer | {"id_token": issuer.token(nonce=asked["nonce"])}
    ),
    "an access token for us": claiming({"typ": "at+jwt"}),
    "names nobody": claiming(sub=None),
    "names a number": claiming(sub=7),
    "names somebody unknown": claiming(sub="somebody-else"),
    "names a workspace that is not there": claiming(workspace="elsewhere"),
    "names no workspace": claiming(workspace=None),
    "none at all": given(lambda _, answer, __: {"access_token": answer["access_token"]}),
    "null": given(lambda _, answer, __: answer | {"id_token": None}),
    "a list": given(lambda _, answer, __: answer | {"id_token": [answer["id_token"]]}),
    "no token": given(lambda _, answer, __: answer | {"id_token": "\ud800 é"}),
    "with a line end": given(lambda _, answer, __: answer | {"id_token": answer["id_token"] + "\n"}),
    "far too long": given(lambda _, answer, __: answer | {"id_token": "eyJ" + "x" * 20_000 + ".a.b"}),
    # the answer around it
    "an answer that is no JSON": given(lambda _, __, ___: b"<html>"),
    "an answer that is a list": given(lambda _, answer, __: [answer]),
    "an answer that is huge": given(lambda _, answer, __: answer | {"more": "x" * 400_000}),
    "an answer with a name twice": given(
        lambda _, answer, __: json.dumps(answer).encode()[:-1] + b', "id_token": "x"}'
    ),
}


def unsigned(issuer: SignInIssuer, asked: dict[str, str]) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(issuer.id_token(asked), options={"verify_signature": False})
    return claims
