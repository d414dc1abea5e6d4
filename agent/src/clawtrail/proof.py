"""How far the store proves to have this agent's events: the only thing that ever comes back."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import Any, Mapping, Protocol, Sequence

from .errors import TransportError
from .https import HTTPSClient
from .transport import TLS

TOGETHER = 100  #: epochs in one request
LARGEST = 2**53 - 1  #: no event has a higher number


class Watermark(Protocol):
    """What knows how far the store has an agent's events."""

    def stored(self, epochs: Sequence[str]) -> Mapping[str, int]:
        """Epoch (UUID) → the greatest n such that its events 1..n are stored and verified; an unknown epoch is absent.

        Raises TransportError.
        """


class HTTPSWatermark:
    """Asks a watermark server over mutual TLS.

    The protocol, version 1. The client, known by its certificate, asks for 1 to 100 epochs of its own:

        GET /v1/watermark?epoch=<uuid>&epoch=<uuid> HTTP/1.1

    The server answers 200 with a body of this form, in UTF-8, header and body together at most 64 KiB:

        {"v":1,"stored":{"<uuid>":<n>}}

    `v` is the integer 1. `stored` has a member for each epoch asked for that the server knows as one of this client's,
    spelled as in the question, and no other. n is an integer from 0 to 2^53-1: the events 1..n of that epoch are stored
    and their chain is verified; it never gets smaller. No member is there twice, none beside these. Any other status is
    an error, a redirect too. HTTP/1.1 keeps the connection for the next question; the server may end it between two.

    Args:
        url: "https://host:port", where 6516 is the usual port; a path in it comes before /v1.
        tls: the client's identity; its `server_hostname`, if it has one, is expected of this server too.
        timeout: seconds for one `stored()`, all in all.

    For one thread at a time. Raises ConfigurationError at once for a url that is none, or not https.
    """

    def __init__(self, url: str, tls: TLS, timeout: float = 5.0) -> None:
        self._client, self._timeout = HTTPSClient(url, tls), timeout
        self.url = url

    def stored(self, epochs: Sequence[str]) -> Mapping[str, int]:
        deadline = time.monotonic() + self._timeout
        asked, answer = list(dict.fromkeys(epochs)), dict[str, int]()
        for n in range(0, len(asked), TOGETHER):
            some = asked[n : n + TOGETHER]
            query = urllib.parse.urlencode([("epoch", epoch) for epoch in some])
            answer |= self._checked(self._client.get(f"/v1/watermark?{query}", deadline), some)
        return answer

    def close(self) -> None:
        """Closes the connection; the next question opens another."""
        self._client.close()

    def _checked(self, body: bytes, asked: Sequence[str]) -> dict[str, int]:
        try:
            answer = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as e:
            raise self._wrong(f"{body[:120]!r} ({e})", "JSON without repeated members") from None
        if not isinstance(answer, dict) or answer.keys() != {"v", "stored"}:
            raise self._wrong(answer, 'an object with the members "v" and "stored" alone')
        if type(answer["v"]) is not int or answer["v"] != 1:
            raise self._wrong(f'"v": {answer["v"]!r}', "the integer 1")
        stored = answer["stored"]
        if not isinstance(stored, dict):
            raise self._wrong(f'"stored": {stored!r}', "an object")
        for epoch, n in stored.items():
            if epoch not in asked:
                raise self._wrong(f"for the epoch {epoch!r}", "only epochs that were asked for")
            if type(n) is not int or not 0 <= n <= LARGEST:
                raise self._wrong(f"{n!r} for the epoch {epoch}", f"an integer from 0 to {LARGEST}")
        return stored

    def _wrong(self, found: object, expected: str) -> TransportError:
        return TransportError(f"watermark server {self._client.peer} answered {str(found):.300}; expected {expected}")

    def __repr__(self) -> str:
        return f"<HTTPSWatermark {self.url}>"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member twice")
    return members
