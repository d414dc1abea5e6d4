"""What an agent sends: who it is, where it wants to go, what it asks for. What could be read in two ways is refused."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError, HttpVersion11, web

from . import apis
from .reading import BULKY, Asked
from .refusal import Refused

if TYPE_CHECKING:
    from .server import Proxy, Upstream

EXCHANGES = 256  #: at once; more are told to come again
BODIES = 64 << 20  #: bytes of all requests that are being read or sent
BODY_MAX = 16 << 20  #: bytes of a request
VALUES_MAX = 1_000_000  #: brackets and commas of a request: each may become an object of some hundred bytes
READ = 60.0  #: seconds for a request's body
DRAIN = 2.0  #: seconds that a refused client may go on sending
_PATH = re.compile(r"/[A-Za-z0-9._~:@+/-]*")
_TOKENS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")


class Inbound:
    """One request.

    Attributes:
        upstream_name: the first part of its path; path: the rest.
        upstream: None where there is none of this name.
        api: None for what is passed on with a minimal record.
        agent: whose token it bears, empty for none that is known.
        body: as it is passed on; size: its bytes.
    """

    def __init__(self, proxy: Proxy, request: web.Request) -> None:
        self.request, self._proxy = request, proxy
        self._raw = request.raw_path.partition("?")[0]
        self.upstream_name, _, rest = self._raw[1:].partition("/")
        self.path = f"/{rest}"
        self.upstream: Upstream | None = proxy.config.upstreams.get(self.upstream_name)
        self.api = apis.api_of(self.path)
        self.agent = self._who()
        self.asked = Asked()
        self.body = b""
        self.size = 0
        self._counted = 0

    def _who(self) -> str:
        given = next((self.request.headers[name] for name in _TOKENS if name in self.request.headers), self.request.query.get("key", ""))
        token = given.removeprefix("Bearer ").strip().encode("utf-8", "surrogateescape")
        return next((agent for agent, known in self._proxy.config.agents.items() if hmac.compare_digest(known.encode(), token)), "")

    async def read(self) -> None:
        """Reads the request. Raises Refused for what is not passed on."""
        self._judge()
        await self._body()
        await self._describe()

    def done(self) -> None:
        """Its bytes are let go."""
        self._proxy.bodies -= self._counted
        self._counted, self.body = 0, b""

    def _judge(self) -> None:
        request = self.request
        if not self.agent:
            raise Refused(400, "agent-token", "unknown agent token; expected the one that the agent was given at its setup", "high", self._proxy.stranger())
        if self.upstream is None or not _PATH.fullmatch(self.path) or "//" in self.path or "/." in self.path:
            known = next(iter(self._proxy.config.upstreams))
            raise Refused(404, "path", f"there is no {self._raw[:100]}; expected /{known}/… of an API that is recorded", "low")
        if "upgrade" in request.headers.get("connection", "").lower() or "upgrade" in request.headers:
            raise Refused(426, "websocket", "a websocket is not recorded; use server-sent events", "low")
        if self.api is None and not apis.minimal(self.path):
            raise Refused(404, "path", f"{self.path[:100]} is not one of the recorded endpoints", "medium")
        if request.method != "POST" and (self.api is not None or request.method != "GET"):
            raise Refused(405, "method", f"{request.method} is not recorded; expected POST", "low")
        if request.version < HttpVersion11:
            raise Refused(400, "http", "HTTP/1.0 cannot tell an answer that was cut off from one that is whole; expected HTTP/1.1")
        if request.query.get("alt", "sse") not in ("sse", "json"):
            raise Refused(400, "body", "an answer that is not JSON cannot be read; expected alt=sse", "medium")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(400, "body", "a compressed request cannot be read; expected no content-encoding", "medium")
        if self.api is not None and request.content_type != "application/json":
            raise Refused(400, "body", f"content type {request.content_type[:60]}; expected application/json", "medium")
        if (request.content_length or 0) > BODY_MAX:
            raise Refused(413, "body", f"a request of {request.content_length} bytes; expected at most {BODY_MAX}")
        if self._proxy.exchanges > EXCHANGES or self._proxy.bodies > BODIES:
            raise Refused(503, "busy", "too many model requests at once; come again")

    async def _body(self) -> None:
        pieces = []
        try:
            async with asyncio.timeout(READ):
                async for piece in self.request.content.iter_any():
                    self._count(piece)
                    if self._counted > BODY_MAX:
                        raise Refused(413, "body", f"a request of more than {BODY_MAX} bytes")
                    pieces.append(piece)
        except TimeoutError:
            raise Refused(408, "body", f"the request was not complete within {READ:.0f} s") from None
        self.body = b"".join(pieces)
        self.size = len(self.body)

    def _count(self, piece: bytes) -> None:
        self._counted += len(piece)
        self._proxy.bodies += len(piece)

    async def _describe(self) -> None:
        """What we describe must be what the provider reads: nothing that two readers may read in two ways."""
        if self.api is None:
            if "json" in self.request.content_type and len(self.body) <= BULKY:
                try:
                    model = json.loads(self.body)["model"]
                    self.asked.model = model if isinstance(model, str) else None
                except (ValueError, KeyError, TypeError, RecursionError):
                    pass
            return
        if self.size > VALUES_MAX and sum(map(self.body.count, (b"{", b"[", b","))) > VALUES_MAX:
            raise Refused(413, "body", f"a request of more than {VALUES_MAX} values")
        try:
            if len(self.body) <= BULKY:
                self.asked = asked(self.api, self.body, self.path)
            else:
                async with self._proxy.bulky:
                    self.asked = await asyncio.to_thread(asked, self.api, self.body, self.path)
        except (ValueError, RecursionError) as e:
            told = "nested too deep" if isinstance(e, RecursionError) else str(e)[:200]
            raise Refused(400, "body", f"the request cannot be read ({told}); expected one JSON object in UTF-8 without duplicate names", "medium") from None

    async def drain(self) -> None:
        """A client that is still sending would meet a closed connection in place of the answer."""
        if self.request.content.is_eof() or self._counted >= BODY_MAX:
            return
        try:
            async with asyncio.timeout(DRAIN):
                async for piece in self.request.content.iter_any():
                    self._count(piece)
                    if self._counted > 2 * BODY_MAX:
                        return
        except (TimeoutError, OSError, ClientError, ValueError, web.RequestPayloadError):
            return


def asked(api: apis.API, body: bytes, path: str) -> Asked:
    """What a request asks for. Raises ValueError for what is no JSON object, or one that two readers may read in two ways."""
    said = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_constant)
    if not isinstance(said, dict):
        raise ValueError(f"{type(said).__name__} at its top")
    if len({name.lower() for name in said}) != len(said):
        raise ValueError("names that differ in case alone")
    return api.asked(said, path)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
