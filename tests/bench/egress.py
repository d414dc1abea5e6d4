"""The model proxy as part of the real forwarder, beside the same requests without it: client, provider and forwarder are processes.

The request is one of OpenClaw's: 107 kB, 41 tools. The provider writes the moment into each chunk of its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stage import TESTS, eventually

if TYPE_CHECKING:
    from .measure import Result, Scene

CHUNKS = 50  #: of one answer, each with text
TRACE, TOKEN = "4bf92f3577b34da6a3ce929d0e0e4736", "bench-token-" + "0" * 24


def body() -> bytes:
    """A chat completion as large as OpenClaw's own: system prompt of 21 kB, 41 tools, a history."""
    words = "The agent reads what the person asks for and decides which of its tools answers it best. "
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "string", "description": words} for n in range(14)}}
    tools = [{"type": "function", "function": {"name": f"tool_{n}", "description": words * 3, "parameters": schema}} for n in range(41)]
    messages = [{"role": "system", "content": words * 236}, *({"role": "user", "content": words * 4} for _ in range(20))]
    return json.dumps({"model": "bench", "stream": True, "messages": messages, "tools": tools, "tool_choice": "auto"}).encode()


def chunk(text: str, finish: str | None = None) -> bytes:
    said = {"id": "c", "model": "bench", "choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


async def provide(pace: float) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(CHUNKS):
            await response.write(chunk(f"{time.monotonic_ns():020d}"))
            await asyncio.sleep(pace)
        await response.write(chunk("", "stop") + b"data: [DONE]\n\n")
        return response

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class Stand:
    """A provider, and the forwarder in front of it with a run that is open."""

    def __init__(self, scene: Scene, pace: float) -> None:
        self.provider: subprocess.Popen[str] = subprocess.Popen([sys.executable, "-m", "bench.egress", str(pace)], cwd=TESTS, stdout=subprocess.PIPE, text=True)
        assert self.provider.stdout is not None
        self.direct = f"http://127.0.0.1:{int(self.provider.stdout.readline())}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.proxied = f"http://127.0.0.1:{port}/model"
        (scene.spool / "token").write_text(TOKEN)
        self.path = scene.spool / "audit.sock"
        command = [sys.executable, "-m", "clawtrail.cli", "forwarder", "--socket", str(self.path), "--any-process", "--durability", "disk",
                   "--receiver", f"127.0.0.1:{scene.sink.port}", "--tls", str(scene.sink.certificates), "--agent", "bench",
                   "--spool", str(scene.spool / "spool"), "--model-url", self.direct, "--model-listen", f"127.0.0.1:{port}",
                   "--agent-token", str(scene.spool / "token")]  # fmt: skip
        self.forwarder = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.DEVNULL, stderr=(scene.spool / "log").open("wb"))
        eventually(lambda: b"listening" in (scene.spool / "log").read_bytes(), 20)
        self.gateway = socket.socket(socket.AF_UNIX)
        self.gateway.connect(str(self.path))
        self.alive()

    def alive(self) -> None:
        """The plugin's word, and that the run is open."""
        trace = {"traceId": TRACE, "spanId": "0" * 15 + "1"}
        start = {"n": 1, "hook": "before_agent_run", "event": {"prompt": "x"}, "ctx": {"runId": "r", "sessionKey": "s", "trace": trace}}
        self.gateway.sendall(json.dumps(start).encode() + b"\n")
        if b'"ok"' in (answer := self.gateway.recv(65536)):
            raise RuntimeError(answer.decode())

    def memory(self) -> int:
        """Bytes, the highest that was resident."""
        return next(int(line.split()[1]) * 1024 for line in Path(f"/proc/{self.forwarder.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))

    def end(self) -> None:
        self.gateway.close()
        for process in (self.forwarder, self.provider):
            process.terminate()
            process.wait(10)


async def ask(base: str, count: int, parallel: int) -> Result:
    """`count` streams, `parallel` at once; milliseconds."""
    import aiohttp

    data, number = body(), 0
    firsts: list[float] = []
    delays: list[float] = []
    began = time.perf_counter()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one(n: int) -> None:
            headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", "traceparent": f"00-{TRACE}-{n + 1:016x}-01"}
            started, first, end = time.monotonic_ns(), 0, b""
            async with client.post(base + "/chat/completions", data=data, headers=headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {await answer.text()}")
                async for piece in answer.content.iter_any():
                    now = time.monotonic_ns()
                    if not first:
                        first = now
                        firsts.append((now - started) / 1e6)
                    for event in piece.split(b"\n\n"):
                        at = event.find(b'"content": "')
                        if at >= 0 and len(event) > at + 32:
                            delays.append((now - int(event[at + 12 : at + 32])) / 1e6)
                    end = (end + piece)[-14:]
            if end != b"data: [DONE]\n\n":
                raise RuntimeError("a stream was cut")

        async def worker() -> None:
            nonlocal number
            while number < count:
                n, number = number, number + 1
                await one(n)

        await asyncio.gather(*(worker() for _ in range(parallel)))
    took = time.perf_counter() - began
    cut = statistics.quantiles
    return {"first_p50": statistics.median(firsts), "first_p99": cut(firsts, n=100)[98], "chunk_p50": statistics.median(delays),
            "chunk_p99": cut(delays, n=100)[98], "streams_per_second": count / took, "chunks": len(delays)}  # fmt: skip


def egress(scene: Scene, n: int, parallel: int, pace: float) -> Result:
    """The same streams without the proxy and through it, in turns."""
    stand = Stand(scene, pace)
    try:
        found: dict[str, list[Result]] = {"direct": [], "proxied": []}
        for turn in range(3):
            for way in sorted(found, reverse=turn % 2 == 1):
                stand.alive()
                if not turn:
                    asyncio.run(ask(getattr(stand, way), max(5, parallel), parallel))
                found[way].append(asyncio.run(ask(getattr(stand, way), n, parallel)))
        result = {f"{way}_{key}": statistics.median(r[key] for r in runs) for way, runs in found.items() for key in runs[0]}
        return {**result, "added_first": result["proxied_first_p50"] - result["direct_first_p50"],
                "added_chunk": result["proxied_chunk_p50"] - result["direct_chunk_p50"], "resident": stand.memory(), "load": os.getloadavg()[0]}  # fmt: skip
    finally:
        stand.end()


if __name__ == "__main__":
    asyncio.run(provide(float(sys.argv[1])))
