"""One request and its answer: judged, recorded, passed on; its end held back until the decision is on record."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError, web

from . import apis, outbound
from .inbound import Inbound
from .outbound import WHOLE_MAX, Returned
from .reading import BULKY, Events, StreamError, data_of
from .record import Record
from .refusal import Refused

if TYPE_CHECKING:
    from .server import Proxy

RELEASE = 10.0  #: seconds that an answer may go on after its finish marker
RETRY_AFTER = 2  #: seconds


class Cut(Exception):
    """The connection to the agent is to end without the finish marker."""


class Exchange:
    def __init__(self, proxy: Proxy, request: web.Request) -> None:
        self._proxy, self._request = proxy, request
        self._sent = Inbound(proxy, request)
        self._record = Record(proxy, self._sent)
        self._response: web.StreamResponse | None = None

    async def answer(self) -> web.StreamResponse:
        try:
            await self._sent.read()
            self._judge()
            await self._record.attempt()
            return await self._forward()
        except Refused as refusal:
            return await self._refuse(refusal)
        finally:
            self._sent.done()
            if self._record.attempted and not self._record.committed:  # whatever ended it: a client that hung up, a stop of ours
                self._record.note_decision()

    def _judge(self) -> None:
        """No record, no model. Raises Refused."""
        self._record.find_run()
        runs = self._proxy.runs
        if not runs.alive():
            silence = runs.silence()
            since = "has not said a word yet" if silence is None else f"is silent for {silence:.0f} s"
            raise Refused(503, "plugin-pulse", f"the audit plugin {since}; no record, no model", "high")
        if self._sent.asked.offers and self._record.run is None:
            raise Refused(400, "run-gate", "no recorded run matches this model request; no record, no model", "high")

    async def _refuse(self, refusal: Refused) -> web.StreamResponse:
        """Says no, in the words of the API; what can be recorded of it is."""
        refusal = await self._record.refused(refusal)
        await self._sent.drain()
        headers = {"retry-after": str(RETRY_AFTER)} if refusal.status == 503 else {}
        api = self._sent.api.name if self._sent.api else ""
        body = apis.error_body(api, refusal.status, f"clawtrail_{refusal.rule.replace('-', '_')}", f"clawtrail: {refusal}")
        return web.json_response(body, status=refusal.status, headers=headers)

    # -- the provider --------------------------------------------------------------------------------------------

    async def _forward(self) -> web.StreamResponse:
        sent, record, upstream = self._sent, self._record, self._sent.upstream
        assert upstream is not None
        url, headers = outbound.url(upstream, sent.path, self._request.query), outbound.headers(upstream, self._request.headers)
        record.reading = sent.api.answer() if sent.api else None
        try:
            async with self._proxy.http.request(
                self._request.method, url, data=outbound.data(sent.body), headers=headers, allow_redirects=False
            ) as answer:
                sent.body = b""
                back = Returned(answer, upstream)
                if answer.status < 400 and (record.reading is None or back.events):
                    return await self._stream(back)
                return await self._whole(back)
        except Cut:
            return self._abort()
        except (ClientError, StreamError, zlib.error, TimeoutError, OSError) as e:
            if self._request.transport is None or self._request.transport.is_closing():
                self._client_gone()
                return self._response or web.Response(status=499)  # nobody is there to read it
            why = type(e).__name__ if isinstance(e, (ClientError, OSError, TimeoutError)) else str(e)
            record.error = record.error or {"type": "upstream", "message": f"{why}: {e}"[:300] if str(e) else why}
            committed = await record.commit()
            if self._response is not None:
                return self._abort()
            if not committed:
                raise record.unrecorded("the decision") from None
            raise Refused(502, "upstream", f"the model's provider could not be reached or broke off ({why})", recorded=False) from None
        except asyncio.CancelledError:
            self._client_gone()
            raise

    def _client_gone(self) -> None:
        gone = {"type": "client-abort", "message": "the agent closed the connection"}
        self._record.error = self._record.error or ({"type": "stopped", "message": "the proxy was stopped"} if self._proxy.stopping else gone)

    async def _stream(self, back: Returned) -> web.StreamResponse:
        self._response = response = web.StreamResponse(status=back.status, headers=back.headers)
        await response.prepare(self._request)
        record, reading, events = self._record, self._record.reading, Events()
        held: list[bytes] = []
        pieces = aiter(back.answer.content.iter_any())
        while (piece := await self._next(pieces, bool(held))) is not None:
            record.received += len(piece)
            data = back.opened(piece)
            if reading is None:
                await response.write(back.scrubbed(data))
                continue
            ready: list[bytes] = []
            for event in events.feed(data):
                if not record.committed and (said := data_of(event)) is not None:
                    reading.event(said)
                (held if reading.closing and not record.committed else ready).append(event)
            if ready:
                await response.write(back.scrubbed(b"".join(ready)))
            if held and reading.done:
                await self._release(back, response, held)
        if reading is not None:
            if rest := events.rest():
                if not record.committed and (said := data_of(rest)) is not None:
                    reading.event(said)
                held.append(rest)
            reading.end()
        await self._release(back, response, held)
        await response.write_eof()
        return response

    async def _next(self, pieces: Any, closing: bool) -> bytes | None:
        """The next piece; None at the end. After the finish marker an answer has RELEASE seconds."""
        try:
            if not closing:
                return await anext(pieces, None)
            async with asyncio.timeout(RELEASE):
                return await anext(pieces, None)
        except TimeoutError:
            if not closing:
                raise
            return None

    async def _release(self, back: Returned, response: web.StreamResponse, held: list[bytes]) -> None:
        """The end of the answer goes out when the decision is acknowledged. Raises Cut when it is not."""
        if not await self._record.commit():
            raise Cut
        if held:
            await response.write(back.scrubbed(b"".join(held)))
            held.clear()

    async def _whole(self, back: Returned) -> web.StreamResponse:
        record, pieces, size = self._record, [], 0
        async for piece in back.answer.content.iter_any():
            record.received += len(piece)
            pieces.append(back.opened(piece))
            size += len(pieces[-1])
            if size > WHOLE_MAX:
                raise StreamError(f"an answer of more than {WHOLE_MAX} bytes")
        body = b"".join(pieces)
        message = ""
        if back.status >= 400:
            message = apis.message_of(back.scrubbed(body))
            record.error = {"type": "provider", "code": back.status, "message": message}
        else:
            assert record.reading is not None
            if len(body) <= BULKY:
                record.reading.whole(body)
            else:
                await asyncio.to_thread(record.reading.whole, body)
            if not record.reading.done:
                raise StreamError("an answer that cannot be read")
        if not await record.commit():
            raise record.unrecorded("the decision")
        if back.status in (401, 403):  # which would make the gateway lock its own key
            raise Refused(400, "provider-key", f"the model's provider refuses the proxy's key (HTTP {back.status}: {message})", recorded=False)
        return web.Response(status=back.status, body=back.scrubbed(body), headers=back.headers)

    def _abort(self) -> web.StreamResponse:
        if self._request.transport is not None:
            self._request.transport.abort()
        assert self._response is not None
        return self._response
