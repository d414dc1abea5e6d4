"""One request and its answer: judged, recorded, passed on; its end held back until the decision is on record."""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import re
import time
import zlib
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError, ClientResponse, HttpVersion11, web
from yarl import URL

from .. import event as ev
from ..recorder import Receipt
from ..redact import Found
from ..runs import Run
from . import apis
from .reading import Answer, Asked, Call, Events, StreamError, data_of, digest

if TYPE_CHECKING:
    from .server import Proxy, Upstream

EXCHANGES = 256  #: at once; more are told to come again
BODIES = 64 << 20  #: bytes of all requests that are being read or sent
BODY_MAX = 16 << 20  #: bytes of a request
WHOLE_MAX = 32 << 20  #: bytes of an answer that is no stream
VALUES_MAX = 1_000_000  #: brackets and commas of a request: each may become an object of some hundred bytes
BULKY = 512 << 10  #: bytes of a body that is read beside the event loop
READ = 60.0  #: seconds for a request's body
RELEASE = 10.0  #: seconds that an answer may go on after its finish marker
RETRY_AFTER = 2  #: seconds
CALLS_SHOWN = 32  #: calls of a decision that are named one by one
_PATH = re.compile(r"/[A-Za-z0-9._~:@+/-]*")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_TOKENS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_PASSED = frozenset({
    "accept", "content-type", "user-agent", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access",
    "openai-beta", "openai-organization", "openai-project", "http-referer", "x-title", "x-goog-api-client",
})  # fmt: skip
_RETURNED = ("content-type", "retry-after", "request-id", "x-request-id")
_RETURNED_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")


class Unrecorded(Exception):
    """The recorder did not take an event.

    Attributes:
        accepted: it did, and only could not say that the event is where it has to be.
        hopeless: it never will take this one.
    """

    def __init__(self, why: str, accepted: bool = False, hopeless: bool = False) -> None:
        super().__init__(why)
        self.accepted, self.hopeless = accepted, hopeless


class Refused(Exception):
    """An answer of our own. `severity`: it is flagged; `recorded`: it leaves an event."""

    def __init__(self, status: int, rule: str, message: str, severity: str = "", recorded: bool = True) -> None:
        super().__init__(message)
        self.status, self.rule, self.severity, self.recorded = status, rule, severity, recorded


class Cut(Exception):
    """The connection to the agent is to end without the finish marker."""


class Exchange:
    def __init__(self, proxy: Proxy, request: web.Request) -> None:
        self.proxy, self.request = proxy, request
        self.upstream: Upstream | None = None
        self.upstream_name = self.path = self.agent = ""
        self.api: apis.API | None = None
        self.asked = Asked()
        self.body = b""
        self.run: Run | None = None
        self.ambiguous = False
        self.caused_by: str | None = None
        self.reading: Answer | None = None
        self.error: dict[str, Any] | None = None
        self._response: web.StreamResponse | None = None
        self.size = self.received = 0
        self._committed = self._attempted = False
        self._counted = 0
        self._began = time.perf_counter()
        trace = _TRACE.fullmatch(request.headers.get("traceparent", ""))
        self.trace: str | None = trace[1] if trace else None
        self.span: str | None = trace[2] if trace else None

    async def answer(self) -> web.StreamResponse:
        try:
            await self._judge()
            await self._attempt()
            return await self._forward()
        except Refused as refusal:
            return await self._refuse(refusal)
        finally:
            self.proxy.bodies -= self._counted
            if self._attempted and not self._committed:  # whatever ended it: a client that hung up, a stop of ours
                self._note_decision()

    # -- before the provider -------------------------------------------------------------------------------------

    async def _judge(self) -> None:
        """Raises Refused for what is not passed on."""
        raw, runs = self.request.raw_path.partition("?")[0], self.proxy.runs
        name, _, rest = raw[1:].partition("/")
        self.upstream_name, self.path = name, f"/{rest}"
        self.upstream = self.proxy.config.upstreams.get(name)
        self.api = apis.api_of(self.path)
        self.agent = self._who()
        if not self.agent:
            raise Refused(400, "agent-token", "unknown agent token; expected the one that the agent was given at its setup", "high", self.proxy.stranger())
        if self.upstream is None or not _PATH.fullmatch(self.path) or "//" in self.path or "/." in self.path:
            raise Refused(404, "path", f"there is no {raw[:100]}; expected /{next(iter(self.proxy.config.upstreams))}/… of an API that is recorded", "low")
        if "upgrade" in self.request.headers.get("connection", "").lower() or "upgrade" in self.request.headers:
            raise Refused(426, "websocket", "a websocket is not recorded; use server-sent events", "low")
        if self.api is None and not apis.minimal(self.path):
            raise Refused(404, "path", f"{self.path[:100]} is not one of the recorded endpoints", "medium")
        if self.request.method != "POST" and (self.api is not None or self.request.method != "GET"):
            raise Refused(405, "method", f"{self.request.method} is not recorded; expected POST", "low")
        if self.request.version < HttpVersion11:
            raise Refused(400, "http", "HTTP/1.0 cannot tell an answer that was cut off from one that is whole; expected HTTP/1.1")
        if self.request.query.get("alt", "sse") not in ("sse", "json"):
            raise Refused(400, "body", "an answer that is not JSON cannot be read; expected alt=sse", "medium")
        await self._read()
        await self._describe()
        self._find_run()
        if not runs.alive():
            silence = runs.silence()
            since = "has not said a word yet" if silence is None else f"is silent for {silence:.0f} s"
            raise Refused(503, "plugin-pulse", f"the audit plugin {since}; no record, no model", "high")
        if self.asked.offers and self.run is None:
            raise Refused(400, "run-gate", "no recorded run matches this model request; no record, no model", "high")

    def _who(self) -> str:
        given = next((self.request.headers[name] for name in _TOKENS if name in self.request.headers), self.request.query.get("key", ""))
        token = given.removeprefix("Bearer ").strip().encode("utf-8", "surrogateescape")
        return next((agent for agent, known in self.proxy.config.agents.items() if hmac.compare_digest(known.encode(), token)), "")

    async def _read(self) -> None:
        if self.request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(400, "body", "a compressed request cannot be read; expected no content-encoding", "medium")
        if self.api is not None and self.request.content_type != "application/json":
            raise Refused(400, "body", f"content type {self.request.content_type[:60]}; expected application/json", "medium")
        if (self.request.content_length or 0) > BODY_MAX:
            raise Refused(413, "body", f"a request of {self.request.content_length} bytes; expected at most {BODY_MAX}")
        if self.proxy.exchanges > EXCHANGES or self.proxy.bodies > BODIES:
            raise Refused(503, "busy", "too many model requests at once; come again")
        pieces = []
        try:
            async with asyncio.timeout(READ):
                async for piece in self.request.content.iter_any():
                    self._counted += len(piece)
                    self.proxy.bodies += len(piece)
                    if self._counted > BODY_MAX:
                        raise Refused(413, "body", f"a request of more than {BODY_MAX} bytes")
                    pieces.append(piece)
        except TimeoutError:
            raise Refused(408, "body", f"the request was not complete within {READ:.0f} s") from None
        self.body = b"".join(pieces)
        self.size = len(self.body)

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
        if sum(map(self.body.count, (b"{", b"[", b","))) > VALUES_MAX:
            raise Refused(413, "body", f"a request of more than {VALUES_MAX} values")
        try:
            if len(self.body) <= BULKY:
                self.asked = _asked(self.api, self.body, self.path)
            else:
                async with self.proxy.bulky:
                    self.asked = await asyncio.to_thread(_asked, self.api, self.body, self.path)
        except (ValueError, RecursionError) as e:
            told = "nested too deep" if isinstance(e, RecursionError) else str(e)[:200]
            raise Refused(400, "body", f"the request cannot be read ({told}); expected one JSON object in UTF-8 without duplicate names", "medium") from None

    def _find_run(self) -> None:
        runs = self.proxy.runs
        open_runs = runs.all_of(self.trace)
        known = runs.by_span(self.span)
        self.run = next((r for r in open_runs if known is not None and r.run == known.run), None) or (open_runs[-1] if open_runs else None)
        self.ambiguous = known is None and len(open_runs) > 1

    async def _attempt(self) -> None:
        """The request's event, acknowledged: no record, no model."""
        fields = self._fields()
        if self.run is None:
            fields |= self._without_run()
            self.proxy.counters["no_tools"] += 1
        try:
            receipt = self.proxy.note("model.request", "attempt", fields)
            self.caused_by = receipt.id
            await self.proxy.acknowledged(receipt, fields)
        except Unrecorded as e:
            if e.accepted or e.hopeless or not self.proxy.ungated():
                raise self._unrecorded(e) from None
        if self.span:
            self.proxy.runs.asked(self.span, self.run, self.caused_by or "")
        self._attempted = True
        self.proxy.counters["requests"] += 1

    def _without_run(self) -> dict[str, Any]:
        """A call that can lead to no action needs no run. Without a span nothing will ever tell whose it was."""
        marked: dict[str, Any] = {"policy": {"engine": "clawtrail", "rule": "no-tools", "verdict": "allow"}}
        if self.span is None:
            severity = "medium" if self.proxy.runs.open_tools() else "low"  # a tool runs, and may be the one that asks
            marked["flag"] = {"rule": "trail.bypass", "severity": severity, "technique": "T1562.001"}
        return marked

    def _unrecorded(self, e: Exception) -> Refused:
        self.proxy.counters["unrecorded"] += 1
        return Refused(503, "recorder", f"the recorder does not accept records ({e}); no record, no model", recorded=False)

    def _fields(self) -> dict[str, Any]:
        """What the request and the decision have in common."""
        run, asked, api = self.run, self.asked, self.api
        fields: dict[str, Any] = {
            "session": run.session if run else None,
            "run": run.run if run else None,
            "trace": _some({"id": self.trace, "span": self.span}) or None,
            "actor": {"type": "agent", "id": self.agent or "unknown", "auth": "verified" if self.agent else "none", "addr": self.request.remote},
            "target": {"type": "host", "id": self.upstream.host} if self.upstream else None,
            "model": _some({
                "via": "proxy", "provider": self.upstream_name if self.upstream else None, "api": api.name if api else "other", "requested": asked.model and asked.model[:256],
                "params": asked.params, "system": digest(asked.system) if asked.system else None, "tools": asked.tools_sha256,
                "tools_n": len(asked.tools) if api else None,
            }),
            "content": _some({"size": self.size, "segments": asked.messages, "mime": None if api else self.request.content_type,
                              "name": None if api else self.path[:256]}),
        }  # fmt: skip
        if self.ambiguous:  # parent and subagents share a trace; which of them it was, the hook's span tells
            fields["asserted"] = ["session", "run"]
        return fields

    async def _refuse(self, refusal: Refused) -> web.StreamResponse:
        """Says no, in the words of the API; what can be recorded of it is."""
        proxy = self.proxy
        proxy.counters["refused"] += refusal.recorded or refusal.rule == "agent-token"
        if self.span and not self._attempted:
            proxy.runs.refused(self.span)
        if refusal.recorded and not self._attempted:
            fields = self._fields()
            fields["policy"] = {"engine": "clawtrail", "rule": refusal.rule, "verdict": "deny", "reason": str(refusal)}
            if refusal.severity:
                fields["flag"] = {"rule": "trail.bypass", "severity": refusal.severity, "technique": "T1562.001"}
            try:
                await proxy.acknowledged(proxy.note("model.request", "denied", fields), fields)
            except Unrecorded as e:
                refusal = self._unrecorded(e)
        if not self.request.content.is_eof() and self._counted < BODY_MAX:
            await self._drain()
        headers = {"retry-after": str(RETRY_AFTER)} if refusal.status == 503 else {}
        body = apis.error_body(self.api.name if self.api else "", refusal.status, f"clawtrail_{refusal.rule.replace('-', '_')}", f"clawtrail: {refusal}")
        return web.json_response(body, status=refusal.status, headers=headers)

    async def _drain(self) -> None:
        """A client that is still sending would meet a closed connection in place of the answer."""
        try:
            async with asyncio.timeout(2.0):
                async for piece in self.request.content.iter_any():
                    self._counted += len(piece)
                    self.proxy.bodies += len(piece)
                    if self._counted > 2 * BODY_MAX:
                        return
        except (TimeoutError, OSError, ClientError, ValueError, web.RequestPayloadError):
            return

    # -- the provider --------------------------------------------------------------------------------------------

    async def _forward(self) -> web.StreamResponse:
        assert self.upstream is not None
        query = {k: v for k, v in self.request.query.items() if k not in ("key", "access_token")}
        url = URL(self.upstream.base.rstrip("/") + self.path, encoded=True).with_query(query or None)
        self.reading = self.api.answer() if self.api else None
        try:
            async with self.proxy.http.request(
                self.request.method, url, data=self._data(), headers=self._headers(), allow_redirects=False
            ) as answer:
                self.body = b""
                return await self._pass_on(answer)
        except Cut:
            return self._abort()
        except (ClientError, StreamError, zlib.error, TimeoutError, OSError) as e:
            if self.request.transport is None or self.request.transport.is_closing():
                self._client_gone()
                return self._response or web.Response(status=499)  # nobody is there to read it
            why = type(e).__name__ if isinstance(e, (ClientError, OSError, TimeoutError)) else str(e)
            self.error = self.error or {"type": "upstream", "message": f"{why}: {e}"[:300] if str(e) else why}
            committed = await self._commit()
            if self._response is not None:
                return self._abort()
            if not committed:
                raise self._unrecorded(RuntimeError("the decision")) from None
            raise Refused(502, "upstream", f"the model's provider could not be reached or broke off ({why})", recorded=False) from None
        except asyncio.CancelledError:
            self._client_gone()
            raise

    def _data(self) -> bytes | io.BytesIO | None:
        return io.BytesIO(self.body) if len(self.body) > BULKY else self.body or None

    def _client_gone(self) -> None:
        gone = {"type": "client-abort", "message": "the agent closed the connection"}
        self.error = self.error or ({"type": "stopped", "message": "the proxy was stopped"} if self.proxy.stopping else gone)

    def _headers(self) -> dict[str, str]:
        assert self.upstream is not None
        out = {k.lower(): v for k, v in self.request.headers.items() if k.lower() in _PASSED or k.lower().startswith("x-stainless-")}
        out["accept-encoding"] = "identity"
        if self.upstream.key:
            header = apis.KEY_HEADERS[self.upstream.api]
            out[header] = f"Bearer {self.upstream.key}" if header == "authorization" else self.upstream.key
        return out

    async def _pass_on(self, answer: ClientResponse) -> web.StreamResponse:
        encoding = answer.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise StreamError(f"an answer in {encoding[:20]}, which was not asked for")
        if 300 <= answer.status < 400:
            raise StreamError(f"a redirect (HTTP {answer.status}), which is not followed")
        inflate = _Inflate(encoding)
        if answer.status < 400 and (self.reading is None or "event-stream" in answer.headers.get("content-type", "")):
            return await self._stream(answer, inflate)
        return await self._whole(answer, inflate)

    def _returned(self, answer: ClientResponse) -> dict[str, str]:
        assert self.upstream is not None
        key = self.upstream.key
        return {k: v for k, v in answer.headers.items()
                if (k.lower() in _RETURNED or k.lower().startswith(_RETURNED_PREFIXES)) and not (key and key in v)}  # fmt: skip

    def _scrubbed(self, data: bytes) -> bytes:
        """A provider that repeats the key in its answer does not hand it to the agent."""
        assert self.upstream is not None
        key = self.upstream.key.encode()
        return data.replace(key, b"[redacted]") if key and key in data else data

    async def _stream(self, answer: ClientResponse, inflate: _Inflate) -> web.StreamResponse:
        self._response = response = web.StreamResponse(status=answer.status, headers=self._returned(answer))
        await response.prepare(self.request)
        reading, events = self.reading, Events()
        held: list[bytes] = []
        pieces = aiter(answer.content.iter_any())
        while (piece := await self._next(pieces, bool(held))) is not None:
            self.received += len(piece)
            data = inflate(piece)
            if reading is None:
                await response.write(self._scrubbed(data))
                continue
            ready: list[bytes] = []
            for event in events.feed(data):
                if not self._committed and (said := data_of(event)) is not None:
                    reading.event(said)
                (held if reading.closing and not self._committed else ready).append(event)
            if ready:
                await response.write(self._scrubbed(b"".join(ready)))
            if held and reading.done:
                await self._release(response, held)
        if reading is not None:
            if rest := events.rest():
                if not self._committed and (said := data_of(rest)) is not None:
                    reading.event(said)
                held.append(rest)
            reading.end()
        await self._release(response, held)
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

    async def _release(self, response: web.StreamResponse, held: list[bytes]) -> None:
        """The end of the answer goes out when the decision is acknowledged. Raises Cut when it is not."""
        if not self._committed and not await self._commit():
            raise Cut
        if held:
            await response.write(self._scrubbed(b"".join(held)))
            held.clear()

    async def _whole(self, answer: ClientResponse, inflate: _Inflate) -> web.StreamResponse:
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            self.received += len(piece)
            pieces.append(inflate(piece))
            size += len(pieces[-1])
            if size > WHOLE_MAX:
                raise StreamError(f"an answer of more than {WHOLE_MAX} bytes")
        body = b"".join(pieces)
        if answer.status >= 400:
            message = apis.message_of(self._scrubbed(body))
            self.error = {"type": "provider", "code": answer.status, "message": message}
            if not await self._commit():
                raise self._unrecorded(RuntimeError("the decision"))
            if answer.status in (401, 403):  # which would make the gateway lock its own key
                raise Refused(400, "provider-key", f"the model's provider refuses the proxy's key (HTTP {answer.status}: {message})", recorded=False)
        else:
            assert self.reading is not None
            if len(body) <= BULKY:
                self.reading.whole(body)
            else:
                await asyncio.to_thread(self.reading.whole, body)
            if not self.reading.done:
                raise StreamError("an answer that cannot be read")
            if not await self._commit():
                raise self._unrecorded(RuntimeError("the decision"))
        return web.Response(status=answer.status, body=self._scrubbed(body), headers=self._returned(answer))

    # -- the decision --------------------------------------------------------------------------------------------

    async def _commit(self) -> bool:
        """Records the decision; whether it is acknowledged. One that the recorder does not take waits on disk."""
        if self._committed:
            return True
        receipt, fields = self._note_decision()
        try:
            if receipt is not None:
                await self.proxy.acknowledged(receipt, fields)
            if receipt is not None or self.proxy.ungated():
                return True
        except Unrecorded:
            pass
        self.proxy.counters["cut"] += 1
        return False

    def _note_decision(self) -> tuple[Receipt | None, dict[str, Any]]:
        self._committed = True
        outcome, fields = self._decision()
        self.proxy.counters["decisions"] += 1
        try:
            return self.proxy.note("model.decision", outcome, fields), fields
        except Unrecorded as e:
            if e.hopeless:
                self.proxy.recorder.lost("decision")
            elif not e.accepted:
                self.proxy.keep(fields, outcome)
        return None, fields

    def _decision(self) -> tuple[str, dict[str, Any]]:
        self.run = self.proxy.runs.by_span(self.span) or self.run  # the hook has told meanwhile whose call it was
        self.ambiguous = self.ambiguous and self.proxy.runs.by_span(self.span) is None
        fields = self._fields()
        fields["caused_by"] = self.caused_by
        fields["duration_us"] = int((time.perf_counter() - self._began) * 1e6)
        model = fields["model"]
        for name in ("params", "system", "tools", "tools_n"):
            model.pop(name, None)
        reading, error = self.reading, self.error
        if reading is None:
            fields["content"] = {"size": self.received}
            fields["decision"] = {"stop": "error" if error else "end"}
        else:
            found = Found()
            redacted = self.proxy.recorder.redactor.string(reading.text, found)
            fields["content"] = ev.content(redacted, reading.size, **found.fields())
            model |= _some({"answered": reading.model and reading.model[:256], "response": reading.id and reading.id[:256]})
            if error is None and not reading.closing:
                error = {"type": "incomplete", "message": "the answer ended before its finish marker"}
            error = error or reading.error
            cancelled = error is not None and error["type"] == "client-abort"
            calls: list[Any] = [self._call(call) for call in list(reading.calls.values())[:CALLS_SHOWN]]
            more = len(reading.calls) - len(calls) + reading.more_calls
            calls += [f"[+{more}]"] if more else []
            fields["decision"] = _some({"stop": "cancel" if cancelled else "error" if error else reading.ending, "calls": calls})
            fields["usage"] = reading.usage or None
        fields["error"] = _some(error) if error else None
        return "failure" if error else "success", {k: v for k, v in fields.items() if v is not None}

    def _call(self, call: Call) -> dict[str, Any]:
        """A call's arguments as the hash that the event of the tool's call has when nothing was changed on the way."""
        arguments = call.arguments
        try:
            arguments = ev.dumps(ev.clean(json.loads(arguments)))
        except (ValueError, RecursionError):
            pass
        redacted = self.proxy.recorder.redactor.string(arguments, Found())
        return _some({"id": call.id and call.id[:256], "tool": call.tool and call.tool[:128], "sha256": digest(redacted), "size": call.characters})

    def _abort(self) -> web.StreamResponse:
        if self.request.transport is not None:
            self.request.transport.abort()
        assert self._response is not None
        return self._response


class _Inflate:
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


def _asked(api: apis.API, body: bytes, path: str) -> Asked:
    """Raises ValueError for what is no JSON object, or one that two readers may read in two ways."""
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


def _some(members: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in members.items() if v not in (None, "", [], {})}
