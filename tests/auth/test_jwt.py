"""JSON Web Tokens: only those that are genuine, in time and meant for this bus are taken, whatever they say."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from eventbus_fastapi.auth import Gate, JWTAuth, Principal
from eventbus_fastapi.errors import CredentialsExpired, SettingsError, Unauthenticated
from tests.auth.connections import request

SECRET = "s" * 16 + "0123456789abcdef" + "t" * 32
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE_PEM = PRIVATE.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
PUBLIC_PEM = (
    PRIVATE.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
HMAC: dict[str, Any] = {"algorithms": ["HS256"], "audience": "eventbus", "issuer": "https://id.example"}
GRANTS = {"publish": ["shop.#"], "subscribe": ["shop.#", "user.*"], "groups": ["shop.*"], "admin": False}


def claims(**others: Any) -> dict[str, Any]:
    given = {
        "sub": "shop",
        "exp": int(time.time()) + 86_400,  # tables are made long before their lines are tried
        "aud": "eventbus",
        "iss": "https://id.example",
        "eventbus": GRANTS,
        **others,
    }
    return {name: value for name, value in given.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: Mapping[str, Any] | None = None, **others: Any) -> str:
    return jwt.encode(claims(**others), key, algorithm, headers=dict(headers or {}))


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def admit(auth: JWTAuth, token: str) -> Principal:
    return await Gate(auth).admit(request(("authorization", f"Bearer {token}")))


async def test_a_token_says_who_it_is_what_it_may_and_until_when() -> None:
    said = claims()
    shop = await admit(JWTAuth(SECRET, **HMAC), jwt.encode(said, SECRET, "HS256"))
    assert (shop.name, shop.publish, shop.subscribe) == ("shop", ("shop.#",), ("shop.#", "user.*"))
    assert (shop.groups, shop.is_admin) == (("shop.*",), False)
    assert shop.expires_at is not None
    assert shop.expires_at.timestamp() == said["exp"]


async def test_a_token_without_grants_grants_nothing() -> None:
    nobody = await admit(JWTAuth(SECRET, **HMAC), signed(eventbus=None))
    assert not nobody.may_publish("a")
    assert not nobody.may_subscribe("a")
    assert not nobody.is_admin


async def test_a_signature_is_checked_with_the_public_key() -> None:
    auth = JWTAuth(PUBLIC_PEM, **{**HMAC, "algorithms": ["RS256", "PS256"]})
    assert (await admit(auth, signed(PRIVATE_PEM, "RS256"))).name == "shop"
    assert (await admit(auth, signed(PRIVATE_PEM, "PS256"))).name == "shop"


def forged_with_the_public_key() -> str:
    """Sign with the public key as if it were the secret of an HMAC, which PyJWT itself refuses to do."""
    import hashlib
    import hmac

    head = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims())}"
    mac = hmac.new(PUBLIC_PEM.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


FORGED = {
    "none": f"{part({'alg': 'none'})}.{part(claims())}.",
    "None": f"{part({'alg': 'None'})}.{part(claims())}.",
    "none with a signature": f"{part({'alg': 'none'})}.{part(claims())}.eA",
    "no algorithm": f"{part({})}.{part(claims())}.eA",
    "algorithm as a list": f"{part({'alg': ['HS256']})}.{part(claims())}.eA",
    "another secret": signed("x" * 64),
    "another algorithm": signed(SECRET, "HS512"),
    "another audience": signed(aud="other"),
    "no audience": signed(aud=None),
    "another issuer": signed(iss="https://evil.example"),
    "no issuer": signed(iss=None),
    "no end": signed(exp=None),
    "no subject": signed(sub=None),
    "an end that is a text": f"{part({'alg': 'HS256'})}.{part(claims(exp='never'))}.eA",
    "an end that is infinite": signed(exp=2**70),
    "not yet": signed(nbf=int(time.time()) + 3_600),
    "a subject that is empty": signed(sub=""),
    "a claim of grants that is none": signed(eventbus=["#"]),
    "a grant that is unknown": signed(eventbus={"publsh": ["#"]}),
    "a grant that is no pattern": signed(eventbus={"publish": ["a..b"]}),
    "a grant that is a text": signed(eventbus={"publish": "#"}),
    "an admin by a number": signed(eventbus={"admin": 1}),
    "a critical header": signed(headers={"crit": ["x"], "x": 1}),
    "the key in the header": signed("x" * 64, headers={"jwk": {"kty": "oct", "k": part("x" * 64)}}),
    "a payload that is changed": ".".join([signed().split(".")[0], part(claims(sub="admin")), signed().split(".")[2]]),
    "a signature that is cut": signed()[:-4],
    "one part": "eyJhbGciOiJIUzI1NiJ9",
    "five parts": "a.b.c.d.e",
    "garbage": "garbage",
    "dots": "..",
    "deep": f"{base64.urlsafe_b64encode(b'[' * 3_000).decode()}.e30.eA",
}


@pytest.mark.parametrize("name", FORGED)
async def test_any_other_token_is_refused(name: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await admit(JWTAuth(SECRET, **HMAC), FORGED[name])
    assert FORGED[name] not in str(refused.value)
    assert refused.value.challenge.startswith("Bearer ")


async def test_a_public_key_is_never_the_secret_of_an_hmac() -> None:
    auth = JWTAuth(PUBLIC_PEM, **{**HMAC, "algorithms": ["RS256"]})
    with pytest.raises(Unauthenticated):
        await admit(auth, forged_with_the_public_key())


async def test_an_expired_token_is_told_so() -> None:
    with pytest.raises(CredentialsExpired):
        await admit(JWTAuth(SECRET, **HMAC), signed(exp=int(time.time()) - 1))


async def test_the_app_may_make_the_principal_and_cannot_outlive_the_token() -> None:
    def of_user(said: Mapping[str, Any]) -> Principal:
        return Principal(f"user:{said['sub']}", subscribe=[f"user.{said['sub']}.#"])

    alice = await admit(JWTAuth(SECRET, **HMAC, principal=of_user), signed(sub="alice"))
    assert (alice.name, alice.subscribe) == ("user:alice", ("user.alice.#",))
    assert alice.expires_at is not None


async def test_the_key_may_be_found_by_the_header() -> None:
    async def by_kid(header: Mapping[str, Any]) -> str:
        return {"1": SECRET}[header["kid"]]

    auth = JWTAuth(by_kid, **HMAC)
    assert (await admit(auth, signed(headers={"kid": "1"}))).name == "shop"
    for headers in ({"kid": "2"}, {}):
        with pytest.raises(Unauthenticated):
            await admit(auth, signed(headers=headers))


async def test_the_keys_of_an_identity_provider_are_found_by_pyjwt(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key())), "kid": "1", "use": "sig"}
    jwks = jwt.PyJWKClient("https://id.example/keys")
    monkeypatch.setattr(jwks, "fetch_data", lambda: {"keys": [published]})  # in place of the network

    auth = JWTAuth(lambda header: jwks.get_signing_key(header["kid"]).key, **{**HMAC, "algorithms": ["RS256"]})

    assert (await admit(auth, signed(PRIVATE_PEM, "RS256", {"kid": "1"}))).name == "shop"
    for headers in ({"kid": "2"}, {}):
        with pytest.raises(Unauthenticated):
            await admit(auth, signed(PRIVATE_PEM, "RS256", headers))


@pytest.mark.parametrize(
    ("key", "algorithms", "words"),
    [
        (SECRET, [], "expected a list of one or more"),
        (SECRET, "HS256", "expected a list of one or more"),
        (SECRET, ["none"], "got 'none'"),
        (SECRET, ["hs256"], "got 'hs256'"),
        (SECRET, ["HS256", "RS256"], "got both"),
        ("short", ["HS256"], "the secret is weak: 5 bytes, expected 32"),
        (SECRET[:40], ["HS256", "HS512"], "expected 64 or more"),
        (PUBLIC_PEM, ["HS256"], "a key that others may know"),
        (None, ["HS256"], "got NoneType"),
        ("", ["RS256"], "expected a public key"),
        ("issuer.pem", ["RS256"], r"a public key \(PEM\) for RS256, got something else"),
        (PUBLIC_PEM, ["ES256", "EdDSA"], r"a public key \(PEM\) for ES256 or EdDSA"),
    ],
)
def test_what_would_be_unsafe_is_refused_at_the_start(key: Any, algorithms: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        JWTAuth(key, algorithms=algorithms, audience=None, issuer=None)
    assert not key or key not in str(refused.value)


def test_without_pyjwt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(SettingsError, match=r"eventbus-fastapi\[jwt\]"):
        JWTAuth(SECRET, **HMAC)
