"""Who may ask: keys, scopes and rates, decided before anything of a request is read; plain ASGI."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ProblemError, problem_response
from service.health.metrics import Metrics
from service.security.exposure import names_loopback
from service.security.key_file import KeysInForce
from service.security.keys import ApiKey, KeyRing
from service.security.keys import Scope as KeyScope
from service.security.rates import RateLimits

_PUBLIC = frozenset({"/", "/docs", "/openapi.json", "/health/live", "/health/ready"})
"""What shows nothing of anybody's subnets: the page's shell, the contract, and the probes."""

_PUBLIC_FOLDERS = ("/web/", "/docs/")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_READING_POSTS = frozenset({"/predict-accuracy"})
_MAX_KEY = 200

_NO_KEY = (
    "this service needs an API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY` "
    "(its operator makes one with `eqnet keys add NAME`)"
)
_UNKNOWN_KEY = (
    "the API key that was sent is not known here, or no longer: send another "
    "(the operator lists them with `eqnet keys list`, and makes one with `eqnet keys add NAME`)"
)
_TWO_KEYS = "different API keys were sent in `Authorization` and `X-API-Key`: send one"


class AccessControl:
    """401 without a valid key where keys are in force, 403 where the key's scope does not cover the call, 429
    beyond its rate. `rate` in requests per second for keys without one of their own, and for each address
    where no keys are in force; 0 is no limit. The key's name goes into `scope["state"]["key"]`.

    Where neither keys are in force nor `anonymous` access is meant, 421 for a `Host` that is not this
    machine's: so asks a page of somebody else's, whose name was made to mean this machine.
    """

    def __init__(
        self, app: ASGIApp, *, keys: KeysInForce, anonymous: bool, rate: float, metrics: Metrics
    ) -> None:
        self._app = app
        self._keys = keys
        self._anonymous = anonymous
        self._rate = rate
        self._rates = RateLimits()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope["path"]):
            await self._app(scope, receive, send)
            return
        ring = self._keys.ring()
        try:
            if self._keys.required:
                key = _authorized(scope, ring)
                scope.setdefault("state", {})["key"] = key.name
                self._check_rate(f"key {key.name}", key.rate or self._rate)
            else:
                if not self._anonymous:
                    _check_host(scope)
                client = scope.get("client")
                self._check_rate(f"address {client[0] if client else ''}", self._rate)
        except ProblemError as problem:
            self._metrics.refused.labels(problem.code).inc()
            await problem_response(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_rate(self, caller: str, rate: float) -> None:
        if rate and (seconds := self._rates.take(caller, rate)):
            raise ProblemError(
                429,
                "rate-limited",
                f"more than {rate:g} requests per second: ask again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )


def is_public(path: str) -> bool:
    return path in _PUBLIC or path.startswith(_PUBLIC_FOLDERS)


def needed_scope(method: str, path: str) -> KeyScope:
    """`BUILD` for whatever is not known to only read."""
    reads = method in _READING or (method == "POST" and path in _READING_POSTS)
    return KeyScope.READ if reads else KeyScope.BUILD


def _check_host(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"host" and value and not names_loopback(host := value.decode("latin-1")):
            raise ProblemError(
                421,
                "unknown-host",
                f"without API keys this service answers as localhost, not as {host[:100]!r}: ask it as "
                "localhost, make a key with `eqnet keys add NAME`, or set EQNET_ALLOW_ANONYMOUS=true to let "
                "everybody in",
            )


def _presented(scope: Scope) -> bytes:
    """The key that came with the request, empty where none did.

    Raises:
        ProblemError: 401, two different ones did.
    """
    found: set[bytes] = set()
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            kind, _, credentials = value.partition(b" ")
            found.add(credentials.strip() if kind.lower() == b"bearer" else b"")
    if len(found) > 1:
        raise _unauthorized(_TWO_KEYS)
    return found.pop() if found else b""


def _authorized(scope: Scope, ring: KeyRing) -> ApiKey:
    presented = _presented(scope)
    key = ring.find(presented) if len(presented) <= _MAX_KEY else None
    if key is None:
        raise _unauthorized(_UNKNOWN_KEY if presented else _NO_KEY)
    needed = needed_scope(scope["method"], scope["path"])
    if needed is KeyScope.BUILD and key.scope is not KeyScope.BUILD:
        raise ProblemError(
            403,
            "forbidden",
            f"the key {key.name} only reads: {scope['method']} here needs a key with the scope `build`",
        )
    return key


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="eqnet"'})
