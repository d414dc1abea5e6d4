"""What every API's reading shares: the events of a stream, and what is gathered of a request and of an answer.

A reading never raises for a body of odd shape: the provider judges it, we only write down what can be read.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Iterable, Iterator

from ..event import SCAN_MAX

BULKY = 512 << 10  #: bytes of a body that is read beside the event loop
EVENT_MAX = 8 << 20  #: bytes of one event of a stream
CALLS_MAX = 256  #: tool calls that one answer is read for; the rest is only counted
ARGUMENTS_MAX = 256 * 1024  #: characters that are kept of one call's arguments
_END = re.compile(rb"\n\r?\n|\r\r")
_STOPS = frozenset({"end", "tool", "length", "filter", "refusal", "cancel", "error"})


class StreamError(ValueError):
    """The answer cannot be read as the stream that it claims to be."""


class Events:
    """Bytes of a `text/event-stream`, in pieces of any size → whole events."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._seen = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The events that are complete now, each with the blank line that ends it. Raises StreamError for one too long."""
        self._bytes += piece
        start = 0
        while end := _END.search(self._bytes, max(start, self._seen)):
            yield bytes(self._bytes[start : end.end()])
            start = end.end()
        del self._bytes[:start]
        self._seen = max(0, len(self._bytes) - 2)
        if len(self._bytes) > EVENT_MAX:
            raise StreamError(f"an event of more than {EVENT_MAX} bytes")

    def rest(self) -> bytes:
        """What came after the last blank line."""
        rest = bytes(self._bytes)
        self._bytes.clear()
        self._seen = 0
        return rest


def data_of(event: bytes) -> bytes | None:
    """What the `data:` lines of an event say; None: it has none, as a comment that keeps a connection open."""
    lines = [line[6:] if line[5:6] == b" " else line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


@dataclass
class Asked:
    """What a request asks for. `tools`: names; `offers`: the model may call something, by whatever way it was told so."""

    model: str | None = None
    stream: bool = False
    messages: int = 0
    system: str = ""
    tools: list[str] = field(default_factory=list)
    tools_sha256: str | None = None
    offers: bool = False
    params: dict[str, Any] = field(default_factory=dict)


class Call:
    """A tool call that the model has decided on; its arguments are text, kept as far as ARGUMENTS_MAX."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.tool: str | None = None
        self._pieces: list[str] = []
        self.characters = self._kept = 0

    @property
    def arguments(self) -> str:
        return "".join(self._pieces)

    def add(self, piece: Any) -> None:
        if isinstance(piece, str) and piece:
            self.characters += len(piece)
            if self._kept < ARGUMENTS_MAX:
                self._pieces.append(piece[: ARGUMENTS_MAX - self._kept])
                self._kept += len(self._pieces[-1])

    def whole(self, arguments: Any) -> None:
        self._pieces, self.characters, self._kept = [], 0, 0
        self.add(arguments if isinstance(arguments, str) else compact(arguments) if arguments is not None else "")


class Answer:
    """One answer while it passes. `event` takes an event of a stream, `whole` a body that is no stream.

    `closing`: the marker has been seen that makes the answer executable. `done`: nothing more belongs to it.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.stop: str | None = None
        self.error: dict[str, Any] | None = None
        self.usage: dict[str, int] = {}
        self.calls: dict[Any, Call] = {}
        self.more_calls = self.bad_events = self.thinking = 0
        self.refused = self.closing = self.done = False
        self._text: list[str] = []
        self._kept = self._characters = self.size = 0

    # -- what comes in -------------------------------------------------------------------------------------------

    def event(self, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self.closing = self.done = True
            return
        said = self._object(data)
        if said is None:
            self.bad_events += 1
        else:
            self.part(said)

    def whole(self, body: bytes) -> None:
        said = self._object(body)
        if said is None:
            self.bad_events += 1
            return
        self.full(said)
        self.closing = self.done = True

    def end(self) -> None:
        """The stream is over."""

    def part(self, said: dict[str, Any]) -> None:
        raise NotImplementedError

    def full(self, said: dict[str, Any]) -> None:
        raise NotImplementedError

    def _object(self, data: bytes) -> dict[str, Any] | None:
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) else None

    # -- what is gathered ----------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What the model said, as `Redactor.string` cuts it."""
        text = "".join(self._text)
        return text if self._characters == self._kept else f"{text}[+{self._characters - self._kept}]"

    def say(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self._characters += len(text)
            self.size += len(text.encode("utf-8", "replace"))
            if self._kept < SCAN_MAX:
                self._text.append(text[: SCAN_MAX - self._kept])
                self._kept += len(self._text[-1])

    def think(self, text: Any) -> None:
        """Thoughts are a claim about the answer, not the answer: only their length is kept."""
        self.thinking += len(text) if isinstance(text, str) else 0

    def refuse(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self.refused = True
            self.say(text)

    def call(self, key: Any, ident: Any = None, tool: Any = None) -> Call:
        if key not in self.calls and len(self.calls) >= CALLS_MAX:
            self.more_calls += 1
            return Call()
        call = self.calls.setdefault(key, Call())
        call.id = ident if isinstance(ident, str) and ident else call.id
        call.tool = tool if isinstance(tool, str) and tool else call.tool
        return call

    def count(self, **numbers: Any) -> None:
        """Adds to `usage` what is a number; a later one takes an earlier one's place."""
        self.usage |= {name: number for name, number in numbers.items() if isinstance(number, int) and not isinstance(number, bool)}

    def fail(self, error: Any) -> None:
        told = error if isinstance(error, dict) else {"message": error}
        kind = told.get("type") or told.get("status") or "provider"
        self.error = {"type": str(kind), "code": told.get("code"), "message": text_of(told.get("message") or told)}
        self.stop = "error"

    @property
    def ending(self) -> str | None:
        """The `stop` of our schema; None for a word that is in none of the tables."""
        if self.error is not None:
            return "error"
        if self.refused:
            return "refusal"
        return "tool" if self.stop == "end" and self.calls else self.stop if self.stop in _STOPS else None


def group(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text_of(content: Any) -> str:
    """A message's text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return "" if content is None else compact(content)


def digest(value: Any) -> str:
    """SHA-256 of what is no secret: a text, or a value as compact JSON in the order in which it came."""
    text = value if isinstance(value, str) else compact(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_tools(tools: list[dict[str, Any]]) -> str | None:
    """As `digest`; None without tools. An agent sends the same hundred kilobytes of them with each request."""
    if not tools:
        return None
    same = marshal.dumps(tools, 2)  # in a third of the time; version 2 writes equal values of equal types alike
    return _digest_of(same) if len(same) <= BULKY else digest(tools)


@lru_cache(8)
def _digest_of(marshalled: bytes) -> str:
    return digest(marshal.loads(marshalled))


#: Every name under which some API takes tools, or something stored that may hold them; without case and underscores,
#: because some servers read names without regard to either.
_OFFERS = frozenset({
    "tools", "functions", "toolconfig", "websearchoptions", "mcpservers", "container", "previousresponseid", "conversation", "prompt",
    "cachedcontent",
})  # fmt: skip


def offers(body: dict[str, Any]) -> bool:
    """A request that offers tools in any way, also in one that we cannot read."""
    return any(value not in (None, [], {}, "", False) for name, value in body.items() if name.lower().replace("_", "") in _OFFERS)


#: The provider's name → ours. What is not in here is not on record: it may be anything.
_PARAMS = {
    "temperature": "temperature", "top_p": "top_p", "topP": "top_p", "top_k": "top_k", "topK": "top_k", "seed": "seed", "n": "n",
    "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens", "maxOutputTokens": "max_tokens",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty", "parallel_tool_calls": "parallel_tool_calls",
    "reasoning_effort": "reasoning_effort", "service_tier": "service_tier", "store": "store", "verbosity": "verbosity",
    "candidateCount": "n", "responseMimeType": "response_format", "background": "background",
}  # fmt: skip


def params(*groups: Any) -> dict[str, Any]:
    """The settings of a request that are one short value each, under our names."""
    found = {}
    for settings in groups:
        for name, value in group(settings).items():
            if name in _PARAMS and isinstance(value, (str, int, float)) and len(str(value)) <= 64:
                found[_PARAMS[name]] = value
    return found


def names(tools: Iterable[dict[str, Any]]) -> list[str]:
    return [str(name)[:128] for tool in tools if (name := group(tool.get("function")).get("name") or tool.get("name") or tool.get("type"))]
