"""Tokens that an attacker might make of what everybody knows of an issuer, and of a genuine token seen once.

Invariant: none of them is a token that the issuer would make for us to take now; each must be refused.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from oidc_issuer import AUDIENCE, SUBJECT, Issuer, base64url, compact, text_of

FOREIGN_RSA, FOREIGN_EC = rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP256R1())
FOREIGN_JWK = Issuer.jwk(FOREIGN_RSA, "rsa-1")
Forge = Callable[[Issuer], str]
NOW = int(time.time())


def claiming(**claims: Any) -> Forge:
    """Signed by the issuer, but it says something else."""
    return lambda issuer: issuer.token(**claims)


def headed(algorithm: str = "RS256", key: Any = None, **header: Any) -> Forge:
    """With another header; by ``key`` where it is not the issuer's."""
    return lambda issuer: issuer.token(algorithm, header, key)


def unsigned(algorithm: str) -> Forge:
    return lambda issuer: (
        f"{base64url(text_of(issuer.header(algorithm, kid='rsa-1')))}.{base64url(text_of(issuer.claims()))}."
    )


def with_hmac(algorithm: str, key: Callable[[Issuer], bytes], **header: Any) -> Forge:
    """Signed with something public, as if it were a secret shared with the issuer."""
    return lambda issuer: compact(
        issuer.header(algorithm, **{"kid": "rsa-1", **header}), issuer.claims(), algorithm, key(issuer)
    )


def changed(change: Callable[[list[str]], list[str]], algorithm: str = "RS256") -> Forge:
    """A genuine token, its parts changed."""
    return lambda issuer: ".".join(change(issuer.token(algorithm).split(".")))


def spliced(part: int, made: Callable[[Issuer], Any]) -> Forge:
    """A genuine token, one of its parts replaced."""
    return lambda issuer: ".".join(
        base64url(text_of(made(issuer))) if number == part else old
        for number, old in enumerate(issuer.token().split("."))
    )


def with_claims(text: Callable[[Issuer], bytes]) -> Forge:
    """Signed by the issuer over this text."""
    return lambda issuer: compact(issuer.header(), text(issuer), "RS256", issuer.rsa)


def with_header(text: Callable[[Issuer], bytes]) -> Forge:
    return lambda issuer: compact(text(issuer), issuer.claims(), "RS256", issuer.rsa)


def with_signature(signature: bytes, algorithm: str = "ES256") -> Forge:
    return changed(lambda parts: [*parts[:2], base64url(signature)], algorithm)


def other_last(text: str) -> str:
    """Another last character that stands for the same bytes: of its bits not all are used."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


def doubled(issuer: Issuer, name: str, value: Any) -> bytes:
    """The claims with another one of that name in front."""
    return b"{" + text_of({name: value})[1:-1] + b"," + text_of(issuer.claims())[1:]


def _der(issuer: Issuer) -> str:
    signed, _, signature = issuer.token("ES256").rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    return f"{signed}.{base64url(encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])))}"


def _deflated(issuer: Issuer) -> str:
    return compact(issuer.header(zip="DEF"), zlib.compress(text_of(issuer.claims()))[2:-4], "RS256", issuer.rsa)


def _json_form(issuer: Issuer) -> str:
    protected, payload, signature = issuer.token().split(".")
    return json.dumps({"payload": payload, "protected": protected, "signature": signature}, separators=(",", ":"))


FORGED: dict[str, Forge] = {
    # The algorithm
    "without a signature, alg none": unsigned("none"),
    "without a signature, alg None": unsigned("None"),
    "without a signature, alg nOnE": unsigned("nOnE"),
    "without a signature, alg RS256": unsigned("RS256"),
    "alg none before a genuine signature": headed(alg="none"),
    "alg empty": headed(alg=""),
    "alg missing": headed(alg=None),
    "alg a number": headed(alg=256),
    "alg a list": headed(alg=["RS256"]),
    "alg in lower case": headed(alg="rs256"),
    "HS256 with the public key as its secret": with_hmac("HS256", lambda issuer: issuer.public_pem),
    "HS256 with the public key without its last line end": with_hmac("HS256", lambda i: i.public_pem.strip()),
    "HS512 with the public key as its secret": with_hmac("HS512", lambda issuer: issuer.public_pem),
    "HS256 with the published key as its secret": with_hmac("HS256", lambda issuer: text_of(issuer.keys[0])),
    "HS256 with the modulus as its secret": with_hmac("HS256", lambda issuer: issuer.keys[0]["n"].encode()),
    "HS256 with an empty secret": with_hmac("HS256", lambda _: b""),
    "HS256 with the audience as its secret": with_hmac("HS256", lambda _: AUDIENCE.encode()),
    "RS512 by the genuine key, which is not allowed": headed("RS512"),
    "PS256 by the genuine key, which is not allowed": headed("PS256"),
    "ES256 under the id of the RSA key": headed("ES256", kid="rsa-1"),
    "RS256 under the id of the elliptic key": headed(kid="ec-1"),
    # The key
    "signed by a foreign RSA key under a known id": headed(key=FOREIGN_RSA),
    "signed by a foreign elliptic key under a known id": headed("ES256", FOREIGN_EC),
    "signed by a foreign key under its own id": headed(key=FOREIGN_RSA, kid="foreign-1"),
    "without a key id": headed(kid=None),
    "key id empty": headed(kid=""),
    "key id a number": headed(kid=1),
    "key id a list": headed(kid=["rsa-1"]),
    "key id a path to an empty file": with_hmac("HS256", lambda _: b"", kid="../../../../dev/null"),
    "key id a path, signed by a foreign key": headed(key=FOREIGN_RSA, kid="/proc/self/environ"),
    "key id with SQL in it": headed(key=FOREIGN_RSA, kid="rsa-1' union select 'x"),
    "key id with a NUL": headed(key=FOREIGN_RSA, kid="rsa-1\0"),
    "key id an address": headed(key=FOREIGN_RSA, kid="http://127.0.0.1:1/keys"),
    "key id of 5,000 characters": headed(key=FOREIGN_RSA, kid="k" * 5_000),
    "its own key embedded (jwk)": headed(key=FOREIGN_RSA, jwk=FOREIGN_JWK),
    "its own key embedded, without a key id": headed(key=FOREIGN_RSA, jwk=FOREIGN_JWK, kid=None),
    "the address of its own keys (jku)": headed(key=FOREIGN_RSA, jku="http://127.0.0.1:1/keys"),
    "the address of its own certificate (x5u)": headed(key=FOREIGN_RSA, x5u="http://127.0.0.1:1/certificate"),
    "its own certificate (x5c)": headed(key=FOREIGN_RSA, x5c=["MIIB"]),
    # Type and extensions
    "without a type": headed(typ=None),
    "of the type JWT, as an ID token": headed(typ="JWT"),
    "of the type of a logout token": headed(typ="logout+jwt"),
    "of a type that begins like ours": headed(typ="at+jwt2"),
    "type a list": headed(typ=["at+jwt"]),
    "a critical extension": headed(crit=["exp"]),
    "no critical extension, but a list of them": headed(crit=[]),
    "an unencoded payload (b64)": headed(crit=["b64"], b64=False),
    "compressed claims (zip)": _deflated,
    # Issuer and audience
    "of another issuer": claiming(iss="https://evil.example.com"),
    "issuer with a slash more": lambda issuer: issuer.token(iss=f"{issuer.url}/"),
    "issuer a list with ours": lambda issuer: issuer.token(iss=[issuer.url]),
    "without an issuer": claiming(iss=None),
    "for another audience": claiming(aud="https://other.example.com"),
    "for another audience, a list": claiming(aud=["https://other.example.com"]),
    "for us and for others": claiming(aud=[AUDIENCE, "https://other.example.com"]),
    "audience in capitals": claiming(aud=AUDIENCE.upper()),
    "audience that begins like ours": claiming(aud=f"{AUDIENCE}.evil.com"),
    "audience empty": claiming(aud=""),
    "audience an empty list": claiming(aud=[]),
    "audience a list in a list": claiming(aud=[[AUDIENCE]]),
    "audience a list with a number": claiming(aud=[AUDIENCE, 1]),
    "audience an object": claiming(aud={AUDIENCE: True}),
    "audience true": claiming(aud=True),
    "without an audience": claiming(aud=None),
    # Times
    "expired an hour ago": claiming(iat=NOW - 7_200, nbf=NOW - 7_200, exp=NOW - 3_600),
    "expired a minute ago": claiming(iat=NOW - 120, nbf=NOW - 120, exp=NOW - 60),
    "expiry zero": claiming(exp=0),
    "expiry negative": claiming(exp=-1),
    "expiry before it was issued": claiming(exp=NOW - 5, iat=NOW, nbf=NOW),
    "expiry true": claiming(exp=True),
    "expiry with a fraction": claiming(exp=NOW + 300.5),
    "expiry a text": claiming(exp=str(NOW + 300)),
    "expiry a list": claiming(exp=[NOW + 300]),
    "expiry in ten to the thirtieth": claiming(exp=10**30),
    "expiry in ten to the three-hundredth": claiming(exp=10**300),
    "expiry 1e400": with_claims(lambda i: text_of(i.claims(exp=987_654)).replace(b"987654", b"1e400")),
    "expiry NaN": with_claims(lambda i: text_of(i.claims(exp=987_654)).replace(b"987654", b"NaN")),
    "expiry Infinity": with_claims(lambda i: text_of(i.claims(exp=987_654)).replace(b"987654", b"Infinity")),
    "expiry null": with_claims(lambda i: text_of(i.claims(exp=987_654)).replace(b"987654", b"null")),
    "expiry of 5,000 digits": with_claims(lambda i: text_of(i.claims(exp=987_654)).replace(b"987654", b"9" * 5_000)),
    "without an expiry": claiming(exp=None),
    "valid for a year": claiming(exp=NOW + 31_536_000),
    "issued in an hour": claiming(iat=NOW + 3_600, exp=NOW + 7_200),
    "issued before 1970": claiming(iat=-1),
    "issued true": claiming(iat=True),
    "issued at a text": claiming(iat=str(NOW)),
    "without a time of issue": claiming(iat=None),
    "not valid before an hour from now": claiming(nbf=NOW + 3_600, exp=NOW + 7_200),
    "not valid before a text": claiming(nbf=str(NOW)),
    "not valid before an object": claiming(nbf={}),
    "without a beginning": claiming(nbf=None),
    # Who, and where
    "of nobody": claiming(sub=None),
    "of an empty name": claiming(sub=""),
    "of a number": claiming(sub=int(SUBJECT)),
    "of a list": claiming(sub=[SUBJECT]),
    "of somebody unknown here": claiming(sub="1"),
    "of a name with a blank more": claiming(sub=f"{SUBJECT} "),
    "of a name with a NUL more": claiming(sub=f"{SUBJECT}\0"),
    "of half a character": claiming(sub="\ud800"),
    "of a name with SQL in it": claiming(sub=f"{SUBJECT}' or '1'='1"),
    "for no workspace": claiming(workspace=None),
    "for an unknown workspace": claiming(workspace="nowhere"),
    "for a workspace where it is nobody": claiming(workspace="elsewhere"),
    "for a list of workspaces": claiming(workspace=["demo"]),
    "for a workspace with a NUL": claiming(workspace="demo\0"),
    "for half a character as the workspace": claiming(workspace="\udfff"),
    "for a workspace with SQL in it": claiming(workspace="demo' or '1'='1"),
    # Its parts
    "the signature one character shorter": lambda issuer: issuer.token()[:-1],
    "the signature cut in half": lambda issuer: issuer.token()[:-170],
    "the signature twice": changed(lambda parts: [*parts[:2], parts[2] * 2]),
    "the signature of another token": lambda issuer: ".".join(
        [*issuer.token(jti="a").split(".")[:2], issuer.token(jti="b").split(".")[2]]
    ),
    "without the last part": changed(lambda parts: parts[:2]),
    "an empty header": changed(lambda parts: ["", *parts[1:]]),
    "empty claims": changed(lambda parts: [parts[0], "", parts[2]]),
    "an empty signature": changed(lambda parts: [*parts[:2], ""]),
    "only dots": lambda _: "..",
    "header and claims swapped": changed(lambda parts: [parts[1], parts[0], parts[2]]),
    "four parts": changed(lambda parts: [*parts, parts[2]]),
    "five parts, as if encrypted": changed(lambda parts: [*parts, parts[2], parts[2]]),
    "an encrypted token to oneself": lambda _: ".".join(
        [base64url(text_of({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "rsa-1"})), *["AAAA"] * 4]
    ),
    "the JSON form of a genuine token": _json_form,
    "claims changed after signing": spliced(1, lambda issuer: issuer.claims(sub="admin")),
    "header changed after signing": spliced(0, lambda issuer: issuer.header(jti="x")),
    "an elliptic signature of zeros": with_signature(bytes(64)),
    "an elliptic signature of ones": with_signature(b"\xff" * 64),
    "an elliptic signature without bytes": with_signature(b"\0"),
    "an elliptic signature in DER": _der,
    "an RSA signature of zeros": with_signature(bytes(256), "RS256"),
    "an RSA signature of one": with_signature(bytes(255) + b"\1", "RS256"),
    # How it is written
    "padding after the signature": lambda issuer: f"{issuer.token()}==",
    "padding after the header": changed(lambda parts: [f"{parts[0]}=", *parts[1:]]),
    "the other base64 alphabet": changed(lambda parts: [parts[0], parts[1], "+/" + parts[2]]),
    "the last bits of the signature set": changed(lambda parts: [*parts[:2], other_last(parts[2])]),
    "a line end in the middle": changed(lambda parts: [parts[0], parts[1][:9] + "%0A" + parts[1][9:], parts[2]]),
    "a blank in the middle": changed(lambda parts: [parts[0], parts[1][:9] + " " + parts[1][9:], parts[2]]),
    "an asterisk that lenient readers skip": changed(lambda parts: [*parts[:2], parts[2][:9] + "*" + parts[2][9:]]),
    "a name twice in the claims": with_claims(partial(doubled, name="sub", value="nobody")),
    "an expiry twice in the claims": with_claims(partial(doubled, name="exp", value=1)),
    "the algorithm twice in the header": with_header(lambda issuer: b'{"alg":"none",' + text_of(issuer.header())[1:]),
    "claims a list": with_claims(lambda issuer: text_of([issuer.claims()])),
    "claims a text": with_claims(lambda _: b'"demo"'),
    "claims null": with_claims(lambda _: b"null"),
    "claims no JSON": with_claims(lambda _: b"sub=admin"),
    "claims not in UTF-8": with_claims(lambda issuer: text_of(issuer.claims())[:-1] + b',"x":"\xff"}'),
    "claims in UTF-16": with_claims(lambda issuer: text_of(issuer.claims()).decode().encode("utf-16")),
    "claims with a byte order mark": with_claims(lambda issuer: b"\xef\xbb\xbf" + text_of(issuer.claims())),
    "claims nested two thousand times": with_claims(
        lambda issuer: text_of(issuer.claims())[:-1] + b',"x":' + b"[" * 2_000 + b"]" * 2_000 + b"}"
    ),
    "claims with a comma too many": with_claims(lambda issuer: text_of(issuer.claims())[:-1] + b",}"),
    "a genuine token within another": with_claims(lambda issuer: issuer.token().encode()),
    "too long by its claims": claiming(padding="x" * 7_000),
    "60,000 characters": claiming(padding="x" * 45_000),
}
