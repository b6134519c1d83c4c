"""JSON Web Tokens: `JWTAuth`, with PyJWT. It needs the extra `jwt`.

Which algorithm a token is checked with is said by the program, never by the token: `none` is not to be had, and a
public key cannot be taken for the secret of an HMAC, as one checker has algorithms of one kind only. A token without
`exp` is not taken, and what it grants ends with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.asking import ask
from eventbus_fastapi.auth.bearer import INVALID_TOKEN
from eventbus_fastapi.auth.credentials import bearer_token
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.auth.way import Way
from eventbus_fastapi.errors import CredentialsExpired, SettingsError, Unauthenticated, quote

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

Claims = Mapping[str, Any]
"""What a token says, after it was found to be genuine."""

SHORTEST_SECRETS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Fewest bytes of the secret of an HMAC: as many as its hash has."""
ASYMMETRIC = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA"}
)
GRANTS = "eventbus"
"""The claim that holds what a token grants."""


class JWTAuth:
    """Knows principals by a JSON Web Token in `Authorization: Bearer …`, or wherever else a token may come.

        EventBus(authenticate=JWTAuth(public_key, algorithms=["RS256"], audience="eventbus", issuer="https://id.example"))

    Unless `principal` says otherwise, `sub` is the name of the principal, and the claim `eventbus` what it may do:

        {"sub": "shop", "exp": 1767225600,
         "eventbus": {"publish": ["shop.#"], "subscribe": ["user.*"], "groups": ["shop.*"], "admin": false}}

    Args:
        key: the secret of an HMAC, or a public key (PEM); or a callable that finds the key of a token by its header, as
            by `kid`, async or not; one that it does not find is a LookupError.
        algorithms: those that tokens may have; all of one kind.
        audience: the `aud` that tokens must have, one of several at least. None: `aud` must be absent.
        issuer: the `iss` that tokens must have. None: whoever has the key may issue them.
        principal: makes the principal from the claims, async or not. What it returns ends with the token at the latest.
        leeway: seconds by which the clock of the issuer may be ahead of ours.

    Raises:
        SettingsError: PyJWT is missing; an algorithm is none that we take, or they are of two kinds; a secret is weak.
    """

    challenge = 'Bearer realm="eventbus"'
    ways = (Way("token", "JWT"),)

    def __init__(
        self,
        key: str | bytes | PublicKeyTypes | Callable[[Mapping[str, Any]], Any],
        *,
        algorithms: Collection[str],
        audience: str | Collection[str] | None,
        issuer: str | Collection[str] | None,
        principal: Callable[[Claims], Principal | Awaitable[Principal | None] | None] | None = None,
        leeway: float = 5.0,
    ) -> None:
        try:
            import jwt
        except ModuleNotFoundError:
            raise SettingsError("PyJWT is not installed; it comes with: pip install 'eventbus-fastapi[jwt]'") from None
        self._jwt = jwt
        self._algorithms = _check_algorithms(algorithms)
        self._key = key if callable(key) else _check_key(key, self._algorithms)
        if isinstance(self._key, str | bytes):
            self._check_fits(self._key)
        self._audience = audience
        self._issuer = issuer
        self._principal = principal or _principal_of
        self._leeway = leeway

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        token = bearer_token(connection)
        if token is None:
            return None
        claims = await self._claims(token)
        principal = await ask(self._principal, claims)
        return None if principal is None else _until(principal, datetime.fromtimestamp(claims["exp"], UTC))

    def _check_fits(self, key: str | bytes) -> None:
        """Raise SettingsError for a key that no algorithm can use: every token would be refused."""
        for algorithm in self._algorithms:
            with suppress(self._jwt.PyJWTError, ValueError, TypeError):
                self._jwt.get_algorithm_by_name(algorithm).prepare_key(key)
                return
        raise SettingsError(f"key: expected a public key (PEM) for {' or '.join(self._algorithms)}, got something else")

    async def _claims(self, token: str) -> Claims:
        try:
            header = self._jwt.get_unverified_header(token)
            if header.get("alg") not in self._algorithms:  # before anybody looks for its key
                raise self._jwt.InvalidAlgorithmError
            key = await ask(self._key, header) if callable(self._key) else self._key
            claims: Claims = self._jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "sub"]},
            )
        except self._jwt.ExpiredSignatureError:
            raise CredentialsExpired("the token has expired") from None
        except (self._jwt.PyJWTError, ValueError, OverflowError, LookupError, RecursionError) as exc:
            reason = type(exc).__name__
            raise Unauthenticated(f"the token is not valid ({reason})", challenge=INVALID_TOKEN) from None
        if not isinstance(claims["exp"], int | float) or not 0 < claims["exp"] < 2**35:
            raise Unauthenticated("the token is not valid (exp)", challenge=INVALID_TOKEN)
        return claims


def _principal_of(claims: Claims) -> Principal:
    """Make a principal of the claims `sub` and `eventbus`."""
    grants = claims.get(GRANTS, {})
    try:
        if not isinstance(grants, Mapping) or grants.keys() - {"publish", "subscribe", "groups", "admin"}:
            raise SettingsError("expected an object with publish, subscribe, groups and admin")
        return Principal(
            claims["sub"],
            publish=grants.get("publish", ()),
            subscribe=grants.get("subscribe", ()),
            groups=grants.get("groups", ()),
            is_admin=grants.get("admin", False),
        )
    except SettingsError as exc:
        raise Unauthenticated(f"claim {quote(GRANTS)} of the token: {exc}", challenge=INVALID_TOKEN) from None


def _until(principal: Principal, end: datetime) -> Principal:
    if principal.expires_at is not None and principal.expires_at <= end:
        return principal
    return principal.until(end)


def _check_algorithms(algorithms: Collection[str]) -> list[str]:
    if isinstance(algorithms, str) or not algorithms:
        raise SettingsError(f"algorithms: expected a list of one or more, got {quote(algorithms)}")
    for algorithm in algorithms:
        if algorithm not in ASYMMETRIC and algorithm not in SHORTEST_SECRETS:
            known = ", ".join([*SHORTEST_SECRETS, *sorted(ASYMMETRIC)])
            raise SettingsError(f"algorithms: expected some of {known}, got {quote(algorithm)}")
    if len({algorithm in ASYMMETRIC for algorithm in algorithms}) > 1:
        raise SettingsError("algorithms: expected HMACs or signatures, got both: a public key is no secret")
    return list(algorithms)


def _check_key(key: Any, algorithms: Collection[str]) -> Any:
    """Return a key that fits the algorithms.

    Raises:
        SettingsError: it does not. The message does not quote it.
    """
    shortest = max((SHORTEST_SECRETS.get(algorithm, 0) for algorithm in algorithms), default=0)
    if not shortest:
        if not key:
            raise SettingsError("key: expected a public key, got nothing")
        return key
    secret = key.encode() if isinstance(key, str) else key
    if not isinstance(secret, bytes):
        raise SettingsError(f"key: expected the secret of an HMAC, got {type(key).__name__}")
    if len(secret) < shortest:
        raise SettingsError(f"key: the secret is weak: {len(secret)} bytes, expected {shortest} or more")
    if secret.lstrip().startswith((b"-----BEGIN", b"ssh-")):
        raise SettingsError("key: expected the secret of an HMAC, got a key that others may know")
    return key
