"""The model proxy between a real client and a real provider that speaks as it is told to: sockets, no mocks."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from clawtrail import runs as runs_module
from clawtrail.gatekeeper import Gatekeeper
from clawtrail.proxy import Config, Proxy, Upstream, exchange, inbound, late
from clawtrail.proxy.apis import KEY_HEADERS
from clawtrail.runs import Runs
from model_apis import APIS, ARGUMENTS, TEXT
from support import eventually

TOKEN, KEY = "agent-token-" + "a" * 24, "provider-key-" + "b" * 24
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
by_name = pytest.mark.parametrize("spoken", APIS, ids=lambda s: s.name)


class Provider:
    """Answers each request by the coroutine that the test gives it; notes what it was asked."""

    def __init__(self):
        self.asked, self.speak = [], None

    async def start(self):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _handle(self, request):
        self.asked.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return await self.speak(request)

    async def close(self):
        await self._runner.cleanup()


def streams(events, wait_before=None, go=None, headers=None, abort=False):
    """Speaks the events one by one; before the one of that number it waits until it may go on."""

    async def speak(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **(headers or {})})
        await response.prepare(request)
        for n, event in enumerate(events):
            if n == wait_before:
                await go.wait()
            await response.write(event)
        if abort:
            request.transport.abort()
        return response

    return speak


def says(body, status=200, headers=None, content_type="application/json"):
    async def speak(request):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers={"content-type": content_type, **(headers or {})})

    return speak


class Stage:
    def __init__(self, recorder, folder, api="openai-completions", idle=600.0):
        self.recorder, self.folder, self.api, self.idle = recorder, folder, api, idle
        self.runs, self.provider, self.spans = Runs(), Provider(), 0

    async def __aenter__(self):
        await self.provider.start()
        upstream = Upstream(self.provider.base, self.api, KEY)
        config = Config({"model": upstream}, {"openclaw": TOKEN}, self.folder, port=0, idle=self.idle)
        self.proxy = Proxy(self.recorder, self.runs, None, config)
        await self.proxy.start()
        self.url = f"http://127.0.0.1:{self.proxy.port}/model"
        self.client = aiohttp.ClientSession(auto_decompress=False)
        self.runs.beat()
        self.runs.started("r1", "s1", TRACE)
        return self

    async def __aexit__(self, *_):
        await self.client.close()
        await self.proxy.close()
        await self.provider.close()

    def headers(self, token=TOKEN, trace=TRACE, **more):
        self.spans += 1
        traced = {"traceparent": f"00-{trace}-{self.spans:016x}-01"} if trace else {}
        return {KEY_HEADERS[self.api]: f"Bearer {token}" if "openai" in self.api else token, **traced, **more}

    def post(self, path, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(self.url + path, data=data, headers={"content-type": "application/json", **self.headers(**headers)})

    async def eventually(self, probe):
        return await asyncio.to_thread(eventually, probe)


@pytest.fixture
def stage(make_recorder, receiver, tmp_path):
    """Runs a coroutine function with a stage; `recorder` and the other options of Stage may be given."""

    def play(scenario, recorder=None, gate="spooled", **options):
        used = recorder or make_recorder(receiver.address, gate=gate, gate_deadline=1.0)

        async def main():
            async with asyncio.timeout(60), Stage(used, tmp_path / "proxy", **options) as staged:
                await scenario(staged)

        asyncio.run(main())

    return play


def events_of(receiver, kind, count=1):
    eventually(lambda: len(receiver.events(kind)) >= count)
    return receiver.events(kind)


def message_of(body):
    said = json.loads(body)
    return said["error"]["message"]


# -- the way through ---------------------------------------------------------------------------------------------


@by_name
def test_a_streamed_answer_passes_byte_for_byte_and_request_and_decision_are_on_record(spoken, stage, receiver):
    async def scenario(s):
        s.provider.speak = streams(spoken.events)
        async with s.post(spoken.path, spoken.request) as answer:
            assert (answer.status, await answer.read()) == (200, b"".join(spoken.events))
        ((method, path, headers, body),) = s.provider.asked
        assert (method, path, json.loads(body)) == ("POST", spoken.path, spoken.request)
        assert TOKEN not in str(headers) and KEY in headers[_name(headers, KEY_HEADERS[spoken.name])]

    stage(scenario, api=spoken.name)
    (request,), (decision,) = events_of(receiver, "model.request"), events_of(receiver, "model.decision")
    assert (request["outcome"], request["session"], request["run"], request["trace"]) == ("attempt", "s1", "r1", {"id": TRACE, "span": f"{1:016x}"})
    model = request["model"]
    assert (model["via"], model["api"], model["requested"], model["tools_n"]) == ("proxy", spoken.name, "model-a", 1)
    assert model["params"]["temperature"] == "0.2" and model["params"]["max_tokens"] == 8192 and len(model["system"]) == len(model["tools"]) == 64
    assert decision["outcome"] == "success" and decision["caused_by"] == request["id"] and decision["run"] == "r1"
    assert decision["model"]["answered"] == "model-2026" and decision["model"]["response"] == "resp_1" and decision["usage"] == spoken.reads
    assert decision["content"]["excerpt"] == TEXT and decision["decision"]["stop"] == "tool"
    (call,) = decision["decision"]["calls"]
    assert call["tool"] == "read" and call.get("id") == spoken.call_id and len(call["sha256"]) == 64
    assert "flag" not in request and "flag" not in decision and decision["duration_us"] > 0


def _name(headers, name):
    return next(h for h in headers if h.lower() == name)


@by_name
def test_a_whole_answer_passes_byte_for_byte_and_is_read_the_same(spoken, stage, receiver):
    async def scenario(s):
        s.provider.speak = says(spoken.whole)
        async with s.post(spoken.whole_path, {**spoken.request, "stream": False}) as answer:
            assert (answer.status, await answer.json()) == (200, spoken.whole)

    stage(scenario, api=spoken.name)
    (decision,) = events_of(receiver, "model.decision")
    assert decision["content"]["excerpt"] == TEXT and decision["decision"]["stop"] == "tool" and decision["usage"] == spoken.reads


def test_what_the_model_decided_has_the_hash_that_the_tools_call_has_in_the_trail(stage, receiver, make_recorder):
    from clawtrail.adapters.openclaw import OpenClaw

    recorder = make_recorder(receiver.address)

    async def scenario(s):
        s.provider.speak = streams(APIS[0].events)
        await (await s.post(APIS[0].path, APIS[0].request)).read()
        OpenClaw(recorder).take({"hook": "before_tool_call", "event": {"toolName": "read", "toolCallId": "call_1", "params": ARGUMENTS}, "ctx": {}})

    stage(scenario, recorder=recorder)
    (decision,), (call,) = events_of(receiver, "model.decision"), events_of(receiver, "tool.call")
    assert decision["decision"]["calls"][0]["sha256"] == call["content"]["sha256"]


@by_name
def test_text_reaches_the_agent_while_the_provider_still_holds_the_rest(spoken, stage):
    async def scenario(s):
        go = asyncio.Event()
        s.provider.speak = streams(spoken.events, 2, go)
        async with s.post(spoken.path, spoken.request) as answer:
            first = b"".join(spoken.events[:2])
            assert await answer.content.readexactly(len(first)) == first
            go.set()
            assert await answer.read() == b"".join(spoken.events[2:])

    stage(scenario, api=spoken.name)


class Held(Gatekeeper):
    """A gate that lets requests through, and decisions when it is told to."""

    def hold(self):
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def refusal(self, level, receipt, attempt, fields):
        if "decision" in fields:
            self.asked.set()
            await self.go.wait()
        return await super().refusal(level, receipt, attempt, fields)


@by_name
def test_the_finish_marker_is_held_until_the_decision_is_acknowledged_and_all_before_it_is_not(spoken, stage):
    async def scenario(s):
        gate = s.proxy.gatekeeper = Held(s.recorder)
        gate.hold()
        s.provider.speak = streams([b"".join(spoken.events)])  # all of it in one piece, the marker right behind the text
        async with s.post(spoken.path, spoken.request) as answer:
            before = b"".join(spoken.events[: spoken.closing])
            assert await answer.content.readexactly(len(before)) == before
            await gate.asked.wait()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await answer.content.readexactly(1)
            gate.go.set()
            assert before + await answer.read() == b"".join(spoken.events)

    stage(scenario, api=spoken.name)


@by_name
def test_an_answer_whose_decision_is_not_acknowledged_is_cut_before_its_finish_marker(spoken, stage, receiver):
    """The gate asks for `sent`, and the receiver dies while the answer streams."""

    async def scenario(s):
        s.recorder.beat()
        await s.eventually(lambda: s.recorder.stats()["connected"])
        go = asyncio.Event()
        s.provider.speak = streams(spoken.events, spoken.closing, go)
        async with s.post(spoken.path, spoken.request) as answer:
            before = b"".join(spoken.events[: spoken.closing])
            assert await answer.content.readexactly(len(before)) == before
            receiver.kill()
            await s.eventually(lambda: not s.recorder.stats()["connected"])
            go.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                assert await answer.read() == b""
        assert s.proxy.counters["cut"] == 1

    stage(scenario, api=spoken.name, gate="model:sent")
    receiver.start()
    (decision,) = events_of(receiver, "model.decision")
    assert decision["decision"]["stop"] == "tool"


@by_name
def test_a_whole_answer_whose_decision_is_not_acknowledged_is_not_given(spoken, stage, receiver):
    async def scenario(s):
        async def speak(request):
            receiver.kill()
            await s.eventually(lambda: not s.recorder.stats()["connected"])
            return await says(spoken.whole)(request)

        s.recorder.beat()
        await s.eventually(lambda: s.recorder.stats()["connected"])
        s.provider.speak = speak
        async with s.post(spoken.whole_path, spoken.request) as answer:
            assert answer.status == 503 and answer.headers["retry-after"] and TEXT not in await answer.text()

    stage(scenario, api=spoken.name, gate="model:sent")
    receiver.start()


# -- no record, no model -----------------------------------------------------------------------------------------


@by_name
def test_without_the_recorder_the_answer_is_503_in_the_words_of_the_api_and_the_provider_is_not_asked(spoken, stage, make_recorder, receiver):
    recorder = make_recorder(receiver.address)

    async def scenario(s):
        recorder.close()
        async with s.post(spoken.path, spoken.request) as answer:
            assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
            body = await answer.read()
            assert "the recorder does not accept records" in message_of(body) and "no record, no model" in message_of(body)
            if spoken.name == "anthropic-messages":
                assert json.loads(body)["type"] == "error"
            if spoken.name == "google-generative-ai":
                assert json.loads(body)["error"]["status"] == "UNAVAILABLE"
        assert s.provider.asked == [] and s.proxy.counters["unrecorded"] == 1

    stage(scenario, recorder=recorder, api=spoken.name)


@by_name
def test_a_request_with_tools_and_without_a_recorded_run_is_400_recorded_and_flagged(spoken, stage, receiver):
    async def scenario(s):
        s.runs.started("r2", "s2", "f" * 32)
        s.runs.ended("r2")
        s.runs._runs["r2"].ended -= runs_module.GRACE + 1
        for trace in (None, "0" * 31 + "1", "f" * 32, TRACE.upper()):
            async with s.post(spoken.path, spoken.request, trace=trace) as answer:
                assert answer.status == 400 and "no recorded run" in message_of(await answer.read())
        assert s.provider.asked == []

    stage(scenario, api=spoken.name)
    denied = events_of(receiver, "model.request", 4)
    assert {(e["outcome"], e["policy"]["rule"], e["flag"]["rule"], e["flag"]["severity"], e["run"]) for e in denied} == {("denied", "run-gate", "trail.bypass", "high", None)}


@by_name
def test_a_call_that_offers_no_tools_needs_no_run_and_is_marked(spoken, stage, receiver):
    async def scenario(s):
        s.provider.speak = streams(spoken.events)
        for trace in (None, "0" * 31 + "1"):
            async with s.post(spoken.path, spoken.without_tools(), trace=trace) as answer:
                assert answer.status == 200 and await answer.read()
        s.runs.tool_started("c1", "exec")
        await (await s.post(spoken.path, spoken.without_tools(), trace=None)).read()

    stage(scenario, api=spoken.name)
    requests = events_of(receiver, "model.request", 3)
    assert [e["policy"] for e in requests] == [{"engine": "clawtrail", "rule": "no-tools", "verdict": "allow"}] * 3
    assert [e.get("flag", {}).get("severity") for e in requests] == ["low", None, "medium"], "without a span nothing tells whose it was; a tool runs, and may have asked"


def test_a_silent_plugin_is_503_until_it_speaks_again(stage, receiver):
    async def scenario(s):
        s.provider.speak = streams(APIS[0].events)
        s.runs._beat -= runs_module.SILENT + 1
        async with s.post(APIS[0].path, APIS[0].without_tools()) as answer:
            assert answer.status == 503 and "the audit plugin is silent" in message_of(await answer.read())
        assert s.provider.asked == []
        s.runs.beat()
        async with s.post(APIS[0].path, APIS[0].request) as answer:
            assert answer.status == 200

    stage(scenario)
    denied, allowed = events_of(receiver, "model.request", 2)
    assert denied["policy"]["rule"] == "plugin-pulse" and denied["flag"]["rule"] == "trail.bypass" and allowed["outcome"] == "attempt"


def test_with_the_glass_broken_a_request_goes_on_without_room_for_its_record(stage, make_recorder, receiver):
    recorder = make_recorder(receiver.address)

    async def scenario(s):
        s.provider.speak = streams(APIS[0].events)
        s.proxy.gatekeeper.break_glass.start(60, "the recorder's disk is being replaced", "kim")
        recorder.close()
        async with s.post(APIS[0].path, APIS[0].request) as answer:
            assert answer.status == 200 and await answer.read() == b"".join(APIS[0].events)

    stage(scenario, recorder=recorder)


def test_an_unknown_token_is_refused_without_401_or_403_and_in_a_loop_does_not_fill_the_trail(stage, receiver):
    async def scenario(s):
        for token in ("wrong", "", TOKEN + "x", KEY, "é" * 10):
            for _ in range(5):
                headers = {"content-type": "application/json", "x-api-key": token} if token else {}
                async with s.client.post(s.url + "/chat/completions", data=b"{}", headers=headers) as answer:
                    assert answer.status == 400 and "unknown agent token" in message_of(await answer.read())
        assert s.proxy.counters["refused"] == 25 and s.provider.asked == []

    stage(scenario)
    denied = events_of(receiver, "model.request")
    assert 1 <= len(denied) < 10 and denied[0]["flag"]["severity"] == "high" and denied[0]["policy"]["rule"] == "agent-token"


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-goog-api-key", "api-key", "query"])
def test_the_token_is_taken_wherever_a_client_puts_it_and_never_handed_on(header, stage):
    async def scenario(s):
        s.provider.speak = says({"data": []})
        url, headers = s.url + "/models?page=2", {}
        if header == "query":
            url += f"&key={TOKEN}"
        else:
            headers[header] = f"Bearer {TOKEN}" if header == "authorization" else TOKEN
        async with s.client.get(url, headers=headers) as answer:
            assert answer.status == 200
        assert TOKEN not in str(s.provider.asked) and s.provider.asked[0][1] == "/models?page=2"

    stage(scenario)


# -- the key and the token ---------------------------------------------------------------------------------------


def test_the_key_never_leaves_toward_the_agent_nor_into_the_trail(stage, receiver):
    spoken = APIS[0]

    async def scenario(s):
        said = []
        leaks = [
            says({"error": {"message": f"bad key {KEY}"}}, 401), says({"error": {"message": f"bad key {KEY}"}}, 429, {"x-ratelimit-note": KEY}),
            says({**spoken.whole, "key": KEY}, headers={"x-request-id": KEY}),
            streams([b'data: {"choices":[{"delta":{"content":"' + KEY.encode() + b'"}}]}\n\n', *spoken.events], headers={"x-request-id": KEY}),
            says(f"<p>{KEY}".encode(), 500, content_type="text/html"), says(f"<p>{KEY}".encode(), 200, content_type="text/html"),
            says(b"", 302, {"location": f"http://127.0.0.1/{KEY}"}),
        ]  # fmt: skip
        for speak in leaks:
            s.provider.speak = speak
            async with s.post(spoken.path, spoken.request) as answer:
                said.append((answer.status, dict(answer.headers), await answer.read()))
        s.provider.speak = says({"data": KEY})
        async with s.client.get(s.url + "/models", headers=s.headers()) as answer:
            said.append((answer.status, dict(answer.headers), await answer.read()))
        assert KEY not in str(said) and len(said) == len(leaks) + 1
        assert [status for status, *_ in said] == [400, 429, 200, 200, 500, 502, 502, 200]
        assert "refuses the proxy's key (HTTP 401" in message_of(said[0][2])

    stage(scenario)
    events_of(receiver, "model.decision", 8)
    assert KEY.encode() not in b"".join(receiver.raw) and TOKEN.encode() not in b"".join(receiver.raw)


def test_a_secret_that_the_model_repeats_is_not_in_the_trail_and_not_in_what_waits(stage, receiver, make_recorder, tmp_path):
    recorder = make_recorder(receiver.address)
    recorder.redactor.learn("vault", "the-known-secret-1")

    async def scenario(s):
        said = json.loads(json.dumps(APIS[0].whole).replace("look at the file", "the-known-secret-1").replace("/etc/hosts", "the-known-secret-1"))
        s.provider.speak = says(said)
        await (await s.post(APIS[0].path, APIS[0].request)).read()

        async def closed(request):
            recorder.close()
            return await says(said)(request)

        s.provider.speak = closed
        async with s.post(APIS[0].path, APIS[0].request) as answer:
            assert answer.status == 503
        assert len(s.proxy.late) == 1

    stage(scenario, recorder=recorder)
    (decision,) = events_of(receiver, "model.decision")
    assert "[redacted:vault:" in decision["content"]["excerpt"] and decision["content"]["redactions"] >= 1
    assert b"the-known-secret-1" not in b"".join(receiver.raw) + (tmp_path / "proxy/late").read_bytes()


# -- requests that are none --------------------------------------------------------------------------------------

BAD = {
    "duplicate names": (b'{"model":"m","tools":[{"type":"function"}],"tools":[]}', {}, "stands twice", 400),
    "names that differ in case": (b'{"tools":[],"Tools":[{}]}', {}, "differ in case", 400),
    "a compressed body": (gzip.compress(b"{}"), {"content-encoding": "gzip"}, "compressed", 400),
    "another content type": (b"{}", {"content-type": "text/plain"}, "text/plain", 400),
    "no JSON": (b"{", {}, "cannot be read", 400),
    "no object": (b"[]", {}, "list at its top", 400),
    "deep": (b'{"a":' + b"[" * 100_000, {}, "nested too deep", 400),
    "too many values": (b"[" + b"[]," * 600_000 + b"0]", {}, "1000000 values", 413),
    "too large": (b" " * (inbound.BODY_MAX + 1), {}, f"at most {inbound.BODY_MAX}", 413),
}


@by_name
@pytest.mark.parametrize("case", BAD)
def test_a_body_that_cannot_be_read_for_sure_is_refused_in_the_words_of_the_api_and_recorded(case, spoken, stage, receiver):
    body, headers, words, status = BAD[case]

    async def scenario(s):
        async with s.client.post(s.url + spoken.path, data=body, headers={"content-type": "application/json", **s.headers(), **headers}) as answer:
            said = await answer.read()
            assert (answer.status, words in message_of(said)) == (status, True), said
        assert s.provider.asked == []

    stage(scenario, api=spoken.name)
    (denied,) = events_of(receiver, "model.request")
    assert denied["outcome"] == "denied" and words in denied["policy"]["reason"] and ("flag" in denied) == (status == 400)


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "/x/../chat/completions", "//chat/completions", "/chat%2Fcompletions", "/a;b/models", "/.hidden/models"])
def test_an_unknown_path_is_404_and_recorded(path, stage, receiver):
    async def scenario(s):
        reader, writer = await asyncio.open_connection("127.0.0.1", s.proxy.port)
        writer.write(f"POST /model{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()
        assert s.provider.asked == []

    stage(scenario)
    (denied,) = events_of(receiver, "model.request")
    assert denied["outcome"] == "denied" and denied["flag"]["rule"] == "trail.bypass"


@pytest.mark.parametrize("how, status", [("websocket", 426), ("GET", 405), ("DELETE", 405), ("http10", 400), ("alt", 400), ("upstream", 404)])
def test_what_is_no_plain_post_is_refused_with_a_reason(how, status, stage, receiver):
    async def scenario(s):
        version, method, more, path = "1.1", "POST", "", "/model/chat/completions"
        if how == "websocket":
            method, more = "GET", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n"
        elif how == "http10":
            version = "1.0"
        elif how in ("GET", "DELETE"):
            method = how
        elif how == "alt":
            path += "?alt=proto"
        else:
            path = "/other/chat/completions"
        reader, writer = await asyncio.open_connection("127.0.0.1", s.proxy.port)
        writer.write(f"{method} {path} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{more}content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        assert int((await reader.readline()).split()[1]) == status
        writer.close()
        assert s.provider.asked == []

    stage(scenario)
    assert events_of(receiver, "model.request")[0]["outcome"] == "denied"


def test_a_request_of_ten_megabytes_passes(stage, receiver):
    spoken = APIS[0]

    async def scenario(s):
        s.provider.speak = streams(spoken.events)
        body = {**spoken.request, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
        async with s.post(spoken.path, body) as answer:
            assert answer.status == 200 and await answer.read() == b"".join(spoken.events)
        assert json.loads(s.provider.asked[0][3]) == body and s.proxy.bodies == 0

    stage(scenario)
    assert events_of(receiver, "model.request")[0]["content"]["size"] > 10_000_000


def test_bodies_in_flight_are_bounded(stage, monkeypatch, receiver):
    monkeypatch.setattr(inbound, "BODIES", 1000)

    async def scenario(s):
        go = asyncio.Event()
        s.provider.speak = streams(APIS[0].events, 0, go)
        body = {**APIS[0].request, "messages": [{"role": "user", "content": "x" * 2000}]}
        async with s.post(APIS[0].path, body):
            async with s.post(APIS[0].path, body) as second:
                assert second.status == 503 and second.headers["retry-after"] and "come again" in message_of(await second.read())
            go.set()
        await s.eventually(lambda: s.proxy.bodies == 0)
        async with s.post(APIS[0].path, body) as third:
            assert third.status == 200

    stage(scenario)


# -- providers that misbehave ------------------------------------------------------------------------------------


@by_name
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_an_answer_that_is_compressed_although_it_was_not_asked_for_is_read_and_passed_on_plain(spoken, encoding, streamed, stage, receiver):
    import zlib

    pack = gzip.compress if encoding == "gzip" else zlib.compress
    plain = b"".join(spoken.events) if streamed else json.dumps(spoken.whole).encode()

    async def scenario(s):
        s.provider.speak = says(pack(plain), headers={"content-encoding": encoding}, content_type="text/event-stream" if streamed else "application/json")
        async with s.post(spoken.path, spoken.request) as answer:
            assert answer.status == 200 and "content-encoding" not in answer.headers and await answer.read() == plain

    stage(scenario, api=spoken.name)
    assert events_of(receiver, "model.decision")[0]["content"]["excerpt"] == TEXT


WRONG = {
    "html": (says(b"<html>", content_type="text/html"), 502), "another encoding": (says(b"x", headers={"content-encoding": "br"}), 502),
    "broken gzip": (says(b"x" * 50, headers={"content-encoding": "gzip"}), 502), "redirect": (says(b"", 307, {"location": "http://127.0.0.1:1/"}), 502),
    "list": (says([1]), 502), "overloaded": (says({"error": {"message": "slow down"}}, 429, {"retry-after": "7"}), 429),
    "its own error": (says({"error": {"message": "boom"}}, 500), 500), "its key refused": (says({"error": {"message": "no"}}, 403), 400),
}  # fmt: skip


@by_name
@pytest.mark.parametrize("case", WRONG)
def test_a_provider_that_answers_wrong_is_told_in_the_words_of_the_api_and_recorded(case, spoken, stage, receiver):
    speak, status = WRONG[case]

    async def scenario(s):
        s.provider.speak = speak
        async with s.post(spoken.path, spoken.request) as answer:
            assert answer.status == status and message_of(await answer.read())
            assert answer.headers.get("retry-after") == ("7" if status == 429 else None)

    stage(scenario, api=spoken.name)
    (decision,) = events_of(receiver, "model.decision")
    assert decision["outcome"] == "failure" and decision["decision"]["stop"] == "error" and decision["error"]["message"]
    assert decision["caused_by"] == events_of(receiver, "model.request")[0]["id"]


@by_name
def test_a_provider_that_is_not_there_is_502_and_recorded(spoken, stage, receiver):
    async def scenario(s):
        await s.provider.close()
        async with s.post(spoken.path, spoken.request) as answer:
            assert answer.status == 502 and "could not be reached" in message_of(await answer.read())

    stage(scenario, api=spoken.name)
    assert events_of(receiver, "model.decision")[0]["error"]["type"] == "upstream"


@by_name
@pytest.mark.parametrize("abort", [True, False], ids=["aborted", "ended"])
def test_a_stream_that_the_provider_breaks_off_is_recorded_as_incomplete(spoken, abort, stage, receiver):
    part = spoken.events[: spoken.closing]

    async def scenario(s):
        s.provider.speak = streams(part, abort=abort)
        async with s.post(spoken.path, spoken.request) as answer:
            if abort:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
            else:
                assert await answer.read() == b"".join(part)

    stage(scenario, api=spoken.name)
    (decision,) = events_of(receiver, "model.decision")
    assert decision["outcome"] == "failure" and decision["error"]["type"] == ("upstream" if abort else "incomplete")
    assert decision["content"]["excerpt"] == TEXT and decision["decision"]["calls"][0]["tool"] == "read"


def test_a_provider_that_falls_silent_is_left_after_its_time(stage, receiver):
    async def scenario(s):
        s.provider.speak = streams(APIS[0].events, 2, asyncio.Event())
        async with s.post(APIS[0].path, APIS[0].request) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

    stage(scenario, idle=0.3)
    assert events_of(receiver, "model.decision")[0]["error"]["type"] == "upstream"


def test_a_provider_that_does_not_end_after_its_finish_marker_is_not_waited_for(stage, receiver, monkeypatch):
    monkeypatch.setattr(exchange, "RELEASE", 0.2)
    spoken = APIS[0]

    async def scenario(s):
        s.provider.speak = streams(spoken.events, spoken.closing + 1, asyncio.Event())
        async with s.post(spoken.path, spoken.request) as answer:
            assert await answer.read() == b"".join(spoken.events[: spoken.closing + 1])

    stage(scenario)
    assert events_of(receiver, "model.decision")[0]["outcome"] == "success"


@by_name
def test_an_agent_that_hangs_up_is_recorded_and_the_provider_is_left(spoken, stage, receiver):
    async def scenario(s):
        left = asyncio.Event()

        async def speak(request):
            try:
                return await streams(spoken.events, 2, asyncio.Event())(request)
            finally:
                left.set()

        s.provider.speak = speak
        answer = await s.post(spoken.path, spoken.request)
        await answer.content.readexactly(5)
        answer.close()
        await left.wait()
        await s.eventually(lambda: s.proxy.exchanges == 0)

    stage(scenario, api=spoken.name)
    (decision,) = events_of(receiver, "model.decision")
    assert decision["error"]["type"] == "client-abort" and decision["decision"]["stop"] == "cancel"


def test_a_stop_of_the_proxy_leaves_the_decision_of_what_was_under_way(stage, receiver):
    async def scenario(s):
        s.provider.speak = streams(APIS[0].events, 2, asyncio.Event())
        answer = await s.post(APIS[0].path, APIS[0].request)
        await answer.content.readexactly(5)

    stage(scenario)
    assert events_of(receiver, "model.decision")[0]["outcome"] == "failure"


def test_embeddings_audio_and_the_like_pass_with_a_minimal_record_that_says_so(stage, receiver):
    async def scenario(s):
        async def speak(request):
            return web.Response(body=b"\xff\x00" * 5000, content_type="audio/mpeg")

        s.provider.speak = speak
        async with s.post("/audio/speech", {"model": "tts-1", "input": "hello"}) as answer:
            assert await answer.read() == b"\xff\x00" * 5000 and answer.content_type == "audio/mpeg"
        form = aiohttp.FormData()
        form.add_field("file", b"x" * 3_000_000, filename="a.wav")
        s.provider.speak = says({"text": "hi"})
        async with s.client.post(s.url + "/audio/transcriptions", data=form, headers=s.headers()) as answer:
            assert await answer.json() == {"text": "hi"}
        assert len(s.provider.asked[1][3]) > 3_000_000

    stage(scenario)
    requests, decisions = events_of(receiver, "model.request", 2), events_of(receiver, "model.decision", 2)
    assert [e["model"]["api"] for e in requests + decisions] == ["other"] * 4
    assert requests[0]["model"]["requested"] == "tts-1" and requests[0]["content"]["name"] == "/audio/speech" and requests[1]["content"]["mime"] == "multipart/form-data"
    assert decisions[0]["content"]["size"] == 10_000 and "excerpt" not in decisions[0]["content"]


# -- what is late ------------------------------------------------------------------------------------------------


def fill(recorder):
    """Events until there is no room for another."""
    for _ in range(100_000):
        try:
            recorder.record("log.record", content={"excerpt": "x" * 1500})
        except Exception:
            return
    raise AssertionError("there is always room")


def test_a_decision_that_finds_no_room_is_cut_waits_on_disk_and_is_told_late(stage, make_recorder, receiver):
    recorder, spoken = make_recorder(receiver.address, quota=1 << 20), APIS[0]

    async def scenario(s):
        go = asyncio.Event()
        s.provider.speak = streams(spoken.events, spoken.closing, go)
        async with s.post(spoken.path, spoken.request) as answer:
            before = b"".join(spoken.events[: spoken.closing])
            assert await answer.content.readexactly(len(before)) == before
            receiver.kill()
            fill(recorder)
            go.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                assert await answer.read() == b""
        assert len(s.proxy.late) == 1
        async with s.post(spoken.path, spoken.request) as answer:
            assert answer.status == 503
        receiver.start()
        await s.eventually(lambda: len(s.proxy.late) == 0)

    stage(scenario, recorder=recorder)
    (decision,) = events_of(receiver, "model.decision")
    assert decision["model"]["late"] is True and decision["model"]["decided_at"] < decision["ts"]
    assert decision["decision"]["stop"] == "tool" and decision["content"]["excerpt"] == TEXT
    assert decision["caused_by"] == [e for e in events_of(receiver, "model.request") if e["outcome"] == "attempt"][0]["id"]


SERVE = """
import asyncio, json, sys
from pathlib import Path
from clawtrail import Recorder
from clawtrail.proxy import Config, Proxy, Upstream
from clawtrail.runs import Runs
port, tls, folder, base, token, trace, full = sys.argv[1:]
async def main():
    recorder = Recorder(("127.0.0.1", int(port)), tls, agent="agent-1", quota=1 << 20, spool=folder + "/spool")
    runs = Runs(Path(folder) / "runs")
    proxy = Proxy(recorder, runs, None, Config({"model": Upstream(base, "openai-completions")}, {"openclaw": token}, Path(folder), port=0))
    await proxy.start()
    runs.beat()
    runs.started("r1", "s1", trace)
    print(proxy.port, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    try:
        while True:
            recorder.record("log.record", content={"excerpt": "x" * 1500})
    except Exception:
        print("full", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_decision_that_waits_outlives_a_sigkill(receiver, pki, tmp_path):
    spoken = APIS[0]

    def serve(base):
        arguments = [sys.executable, "-c", SERVE, str(receiver.port), str(pki.client), str(tmp_path), base, TOKEN, TRACE, ""]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, int(process.stdout.readline())

    async def scenario():
        provider, go = Provider(), asyncio.Event()
        await provider.start()
        provider.speak = streams(spoken.events, spoken.closing, go)
        process, port = serve(provider.base)
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", "traceparent": f"00-{TRACE}-{1:016x}-01"}
        try:
            async with aiohttp.ClientSession() as client, client.post(f"http://127.0.0.1:{port}/model{spoken.path}", json=spoken.request, headers=headers) as answer:
                assert answer.status == 200
                await answer.content.readexactly(len(spoken.events[0]))
                receiver.kill()
                process.stdin.write("\n")
                process.stdin.flush()
                assert await asyncio.to_thread(process.stdout.readline) == "full\n"
                go.set()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        assert late.LateDecisions(tmp_path / "late").first()["decision"]["stop"] == "tool"
        receiver.start()
        process, _ = serve(provider.base)
        try:
            await asyncio.to_thread(eventually, lambda: receiver.events("model.decision"))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        await provider.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    (decision,) = receiver.events("model.decision")
    assert decision["model"]["late"] is True and decision["session"] == "s1"
    assert len(late.LateDecisions(tmp_path / "late")) == 0


def decision(n, size=10):
    return {"outcome": "success", "model": {"via": "proxy"}, "content": {"excerpt": f"{n} " + "x" * size}}


def test_late_decisions_come_in_order_and_delivered_ones_do_not_come_again(tmp_path):
    waiting = late.LateDecisions(tmp_path / "late")
    assert all(waiting.put(decision(n)) for n in range(3))
    assert waiting.first() == decision(0)
    waiting.delivered()
    again = late.LateDecisions(tmp_path / "late")
    assert len(again) == 2 and again.first() == decision(1)
    again.delivered()
    again.delivered()
    assert again.first() is None and len(late.LateDecisions(tmp_path / "late")) == 0


def test_a_line_that_a_loss_of_power_tore_takes_nothing_else_with_it(tmp_path):
    waiting = late.LateDecisions(tmp_path / "late")
    waiting.put(decision(0))
    waiting.put(decision(1, 500))
    with (tmp_path / "late").open("r+b") as f:
        whole = f.read()
        end = whole.index(b"\n") + 100
        f.seek(end)
        f.write(bytes(len(whole) - end))
    again = late.LateDecisions(tmp_path / "late")
    assert len(again) == 1 and again.put(decision(2)) and late.LateDecisions(tmp_path / "late")._waiting.__len__() == 2
    with (tmp_path / "late").open("r+b") as f:
        f.write(b"{ garbage")
    assert late.LateDecisions(tmp_path / "late").first() == decision(2)


def test_the_room_is_taken_beforehand_and_what_does_not_fit_is_counted(tmp_path):
    waiting = late.LateDecisions(tmp_path / "late", room=4096)
    assert (tmp_path / "late").stat().st_blocks * 512 >= 4096
    kept = sum(waiting.put(decision(n, 300)) for n in range(20))
    assert 5 <= kept < 20 and waiting.lost == 20 - kept and (tmp_path / "late").stat().st_size == 4096
    for _ in range(kept):
        waiting.delivered()
    assert waiting.put(decision(1, 3000)), "the room is there again"


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self/mounts").exists(), reason="a small device of its own needs root")
def test_a_full_disk_has_room_for_what_is_late(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        waiting = late.LateDecisions(mount / "late")
        with pytest.raises(OSError), (mount / "filler").open("wb", buffering=0) as f:
            while True:
                f.write(bytes(1 << 16))
        assert waiting.put(decision(0)) and late.LateDecisions(mount / "late").first() == decision(0)
        waiting.close()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


# -- calls that only one side saw --------------------------------------------------------------------------------


def test_a_request_that_no_hook_tells_of_and_a_call_that_the_proxy_never_saw_are_flagged(stage, receiver, monkeypatch):
    monkeypatch.setattr(runs_module, "JOIN", 0.5)

    async def scenario(s):
        s.provider.speak = streams(APIS[0].events)
        s.runs.called(f"{1:016x}", "r1", "s1", "01a20a45-1c91-7ec1-8857-000000000001")
        await (await s.post(APIS[0].path, APIS[0].request)).read()
        await (await s.post(APIS[0].path, APIS[0].request)).read()
        s.runs.called("a" * 16, "r1", "s1", "01a20a45-1c91-7ec1-8857-000000000002")
        await (await s.post(APIS[0].path, APIS[0].request, trace="f" * 32)).read()  # refused, and flagged by that
        await s.eventually(lambda: s.proxy.counters["bypassed"] == 2)

    stage(scenario)
    told = events_of(receiver, "policy.decision", 2)
    assert {(e["trace"]["span"], e["flag"]["rule"], e["flag"]["severity"], e["policy"]["rule"]) for e in told} == {
        (f"{2:016x}", "trail.bypass", "high", "model-join"), ("a" * 16, "trail.bypass", "critical", "model-join")}  # fmt: skip
    requests = {e["trace"]["span"]: e for e in receiver.events("model.request")}
    assert {e["caused_by"] for e in told} == {requests[f"{2:016x}"]["id"], "01a20a45-1c91-7ec1-8857-000000000002"}


def test_of_runs_that_share_a_trace_the_hooks_span_tells_which_one_asked(stage, receiver):
    async def scenario(s):
        s.runs.started("child", "s1:sub", TRACE)
        s.provider.speak = streams(APIS[0].events)
        s.runs.called(f"{1:016x}", "r1", "s1", "01a20a45-1c91-7ec1-8857-000000000001")
        await (await s.post(APIS[0].path, APIS[0].request)).read()
        await (await s.post(APIS[0].path, APIS[0].request)).read()

    stage(scenario)
    known, guessed = events_of(receiver, "model.request", 2)
    assert (known["run"], known.get("asserted")) == ("r1", None) and (guessed["run"], guessed["asserted"]) == ("child", ["session", "run"])


def test_an_address_that_is_taken_or_a_wrong_setting_is_told_at_once(make_recorder, receiver, tmp_path):
    from clawtrail.errors import ConfigurationError

    for base, api, key in (("ftp://x", "openai-completions", ""), ("http://", "openai-completions", ""), ("http://x", "bedrock", ""), ("http://x", "openai-responses", "a b")):
        with pytest.raises(ConfigurationError, match="expected"):
            Upstream(base, api, key)
    with pytest.raises(ConfigurationError):
        Config({"model": Upstream("http://x", "openai-completions")}, {"openclaw": "short"}, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config({"model": Upstream("http://x", "openai-completions")}, {"openclaw": TOKEN}, tmp_path, port=taken.getsockname()[1])
        proxy = Proxy(make_recorder(receiver.address), Runs(), None, config)

        async def main():
            with pytest.raises(OSError):
                await proxy.start()
            await proxy.close()

        asyncio.run(main())
    assert KEY not in repr(Upstream("http://x", "openai-completions", KEY)) and TOKEN not in repr(config)
