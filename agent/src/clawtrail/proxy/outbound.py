"""The way to a provider and back: what of a request is passed on, with the provider's key, and what of the answer returns."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Mapping

from aiohttp import ClientResponse
from yarl import URL

from . import apis
from .reading import BULKY, StreamError

if TYPE_CHECKING:
    from .server import Upstream

WHOLE_MAX = 32 << 20  #: bytes of an answer that is no stream
_PASSED = frozenset({
    "accept", "content-type", "user-agent", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access",
    "openai-beta", "openai-organization", "openai-project", "http-referer", "x-title", "x-goog-api-client",
})  # fmt: skip
_RETURNED = ("content-type", "retry-after", "request-id", "x-request-id")
_RETURNED_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")


def url(upstream: Upstream, path: str, query: Mapping[str, str]) -> URL:
    """Where the request goes; a key in the query is the agent's, and stays here."""
    passed = {k: v for k, v in query.items() if k not in ("key", "access_token")}
    return URL(upstream.base.rstrip("/") + path, encoded=True).with_query(passed or None)


def headers(upstream: Upstream, given: Mapping[str, str]) -> dict[str, str]:
    out = {k.lower(): v for k, v in given.items() if k.lower() in _PASSED or k.lower().startswith("x-stainless-")}
    out["accept-encoding"] = "identity"
    if upstream.key:
        header = apis.KEY_HEADERS[upstream.api]
        out[header] = f"Bearer {upstream.key}" if header == "authorization" else upstream.key
    return out


def data(body: bytes) -> bytes | io.BytesIO | None:
    return io.BytesIO(body) if len(body) > BULKY else body or None


class Returned:
    """A provider's answer on its way back. Raises StreamError for one in an encoding that was not asked for, and for a redirect."""

    def __init__(self, answer: ClientResponse, upstream: Upstream) -> None:
        encoding = answer.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise StreamError(f"an answer in {encoding[:20]}, which was not asked for")
        if 300 <= answer.status < 400:
            raise StreamError(f"a redirect (HTTP {answer.status}), which is not followed")
        self.answer, self.status, self._key = answer, answer.status, upstream.key
        self.opened = Inflate(encoding)

    @property
    def events(self) -> bool:
        """Whether it is a stream of events."""
        return "event-stream" in self.answer.headers.get("content-type", "")

    @property
    def headers(self) -> dict[str, str]:
        return {k: v for k, v in self.answer.headers.items()
                if (k.lower() in _RETURNED or k.lower().startswith(_RETURNED_PREFIXES)) and not (self._key and self._key in v)}  # fmt: skip

    def scrubbed(self, data: bytes) -> bytes:
        """A provider that repeats the key in its answer does not hand it to the agent."""
        key = self._key.encode()
        return data.replace(key, b"[redacted]") if key and key in data else data


class Inflate:
    """Pieces of an answer as they were before the provider compressed them, although it was asked not to."""

    def __init__(self, encoding: str) -> None:
        self._inflate = zlib.decompressobj(47) if encoding != "identity" else None

    def __call__(self, piece: bytes) -> bytes:
        if self._inflate is None:
            return piece
        data = self._inflate.decompress(piece, WHOLE_MAX)
        if self._inflate.unconsumed_tail:
            raise StreamError(f"a compressed piece of more than {WHOLE_MAX} bytes")
        return data
