"""A scripted model behind the APIs of the common providers, so that a real agent does real work without one.

The user's message is the script: every line of the form

    TOOL name {"argument": "value"}

becomes one tool call, one after the other. The arguments are one JSON object, which may run over
several lines; nothing may follow it on its last line. All other lines are ignored, and so is
whatever stands in square brackets before `TOOL` on its line (agents put the time there). When
every call has its result the model answers `DONE n tool results: …`. A `TOOL` line that cannot be
read is answered with a text that names the line, and no call of that script is made.

`TOOL say {"text": "…"}` is no tool: the model answers with that text. `"recite": n` adds the first n lines of its
system prompt; `TOOL refuse {"text": "…"}` says it as a refusal. A line with the one word `GULLIBLE` makes it a model that obeys what it reads: the `TOOL` lines of each
tool result are done next, as an injected instruction would be. For a rehearsal of attacks.

Endpoints: POST, streaming or not, /v1/chat/completions, /v1/responses, /v1/messages and /v1beta/models/NAME:generateContent or
:streamGenerateContent, each also below another path; GET /v1/models, GET /healthz.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .demo_apis import API, Answer, api_of

MODEL = "demo"
MAX_BODY = 16 * 1024 * 1024  # bytes of one request; an agent's tools and history are some hundred KiB

_DIRECTIVE = re.compile(r"^[ \t]*(?:\[[^\]\n]*\][ \t]*)*TOOL(?=[ \t]|$)[ \t]*", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_GULLIBLE = re.compile(r"^[ \t]*(?:\[[^\]\n]*\][ \t]*)*GULLIBLE[ \t]*$", re.MULTILINE)
_OBEYED_MAX = 200  #: calls that one script may lead to through what the model reads


class ScriptError(ValueError):
    """A `TOOL` line that cannot be read; the text names the line and the reason."""


@dataclass(frozen=True)
class Call:
    """One tool call of a script: the tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


class Refusal(str):
    """A text by which the model says that it does not do what it was asked for."""


def parse_script(text: str) -> list[Call]:
    """The tool calls of `text`, in order; raises `ScriptError`."""
    calls = []
    position = 0
    while found := _DIRECTIVE.search(text, position):
        line = text.count("\n", 0, found.end()) + 1
        name = _NAME.match(text, found.end())
        if not name:
            raise ScriptError(f'line {line}: no tool name; expected TOOL name {{"argument": "value"}}')
        start = name.end() + len(text[name.end() :]) - len(text[name.end() :].lstrip(" \t"))
        try:
            arguments, end = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ScriptError(f"line {line}: the arguments of {name[0]} are not JSON: {error.msg}") from None
        except RecursionError:
            raise ScriptError(f"line {line}: the arguments of {name[0]} are nested too deep") from None
        if not isinstance(arguments, dict):
            raise ScriptError(f"line {line}: the arguments of {name[0]} are no JSON object")
        rest = text[end:].split("\n", 1)[0].strip()
        if rest:
            raise ScriptError(f"line {line}: unexpected text after the arguments of {name[0]}: {rest[:40]}")
        calls.append(Call(name[0], arguments))
        position = end
    return calls


def decide(messages: list[Any]) -> str | Call:
    """What the model does next in a conversation (OpenAI `messages`): a text, or a tool call."""
    try:
        script, after = _current_script(messages)
    except ScriptError as error:
        return f"I cannot read the script: {error}"
    results = [_text(message) for message in after if message.get("role") == "tool"]
    calls = parse_script(script)
    gullible = _GULLIBLE.search(script) is not None
    for result in results[:_OBEYED_MAX]:
        calls = (_obeyed(result) if gullible else []) + calls[1:]
    calls = calls if len(results) <= _OBEYED_MAX else []
    if calls and calls[0].name == "say":
        return _said(calls[0].arguments, messages)
    if calls and calls[0].name == "refuse":
        return Refusal(calls[0].arguments.get("text", ""))
    if calls:
        return calls[0]
    summary = " | ".join(" ".join(result.split())[:80] for result in results)
    return f"DONE {len(results)} tool results: {summary}" if results else "DONE 0 tool results"


def _obeyed(result: str) -> list[Call]:
    """The calls that a tool result asks for, also when it stands inside a JSON string; what cannot be read is ignored."""
    for text in (result, result.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")):
        try:
            if calls := parse_script(text):
                return calls
        except ScriptError:
            continue
    return []


def _said(arguments: dict[str, Any], messages: list[Any]) -> str:
    lines = [line for m in messages if isinstance(m, dict) and m.get("role") in ("system", "developer") for line in _text(m).splitlines()]
    recited = lines[: arguments["recite"]] if isinstance(arguments.get("recite"), int) else []
    return "\n".join([str(arguments.get("text", "")), *recited])


def _current_script(messages: list[Any]) -> tuple[str, list[dict[str, Any]]]:
    """The newest script and the messages after it; none when it was already answered."""
    messages = [message for message in messages if isinstance(message, dict)]
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.get("role") == "assistant" and not message.get("tool_calls"):
            break
        if message.get("role") == "user" and parse_script(text := _text(message)):
            return text, messages[index + 1 :]
    return "", []


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _tokens(text: str) -> int:
    return (len(text) + 3) // 4  # the usual rule of thumb: four characters


def answer(api: API, request: dict[str, Any]) -> Answer:
    """What the model says to one request body."""
    messages = api.messages(request)
    decision = decide(messages)
    called = decision if isinstance(decision, Call) else None
    text = f"I call {called.name}." if called else str(decision)
    arguments = called.arguments if called else {}
    return Answer(
        id=uuid.uuid4().hex,
        model=str(request.get("model") or MODEL),
        text=text,
        tool=called.name if called else None,
        arguments=arguments,
        call_id=uuid.uuid4().hex[:12],
        prompt=_tokens(json.dumps([messages, request.get("tools")], ensure_ascii=False)),
        completion=_tokens(json.dumps([text, arguments], ensure_ascii=False)),
        refuses=isinstance(decision, Refusal),
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a client to send its request

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._json(200, {"ok": True})
        elif self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "clawtrail"}]})
        else:
            self._error(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("content-length", ""))
        except ValueError:
            return self._refuse(411, "Content-Length is required")
        if not 0 <= length <= MAX_BODY:
            return self._refuse(413, f"the request has {length} bytes, the limit is {MAX_BODY}")
        body = self.rfile.read(length)
        if (api := api_of(self.path)) is None:
            return self._error(404, f"no such path: {self.path}")
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            return self._error(400, f"the request is not JSON: {error}")
        if not isinstance(request, dict):
            return self._error(400, "the request is no JSON object")
        said = answer(api, request)
        if request.get("stream") is True or ":streamGenerateContent" in self.path:
            self._stream(api, said)
        else:
            self._json(200, api.whole(said))

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _refuse(self, status: int, message: str) -> None:
        """An error before the body was read: the connection cannot be used further."""
        self.close_connection = True
        self._error(status, message)

    def _stream(self, api: API, said: Answer) -> None:
        self.close_connection = True  # the stream's end is the connection's
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for name, data in api.events(said):
            self.wfile.write((f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.write(api.last)


class DemoModel(ThreadingHTTPServer):
    """The server on `(host, port)`; port 0 takes a free one (`server_address`)."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is no event of ours


def serve(host: str, port: int) -> None:
    """Answers requests until the process ends."""
    with DemoModel(host, port) as server:
        server.serve_forever()
