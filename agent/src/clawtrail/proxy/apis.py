"""Which API a path belongs to, how its key is handed over, and what its errors look like."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Callable

from . import anthropic, chat, gemini, reading, responses
from .reading import Answer, Asked


@dataclass(frozen=True)
class API:
    """`name` as OpenClaw calls it (`models.providers.*.api`)."""

    name: str
    asked: Callable[[dict[str, Any], str], Asked]
    answer: type[Answer]


CHAT = API("openai-completions", chat.asked, chat.ChatAnswer)
RESPONSES = API("openai-responses", responses.asked, responses.ResponsesAnswer)
ANTHROPIC = API("anthropic-messages", anthropic.asked, anthropic.AnthropicAnswer)
GEMINI = API("google-generative-ai", gemini.asked, gemini.GeminiAnswer)
#: The header in which each API takes its key; `authorization` takes it as a bearer token.
KEY_HEADERS = {
    CHAT.name: "authorization", RESPONSES.name: "authorization", ANTHROPIC.name: "x-api-key", GEMINI.name: "x-goog-api-key",
    "azure-openai-responses": "api-key",
}  # fmt: skip

#: What is passed on with a record of its size alone: no model of these calls a tool.
_MINIMAL = re.compile(
    r"(/[^/:]+)*/(embeddings|models(/[^/:]+){0,2}|models/[^/:]+:(embedContent|batchEmbedContents|countTokens)|messages/count_tokens"
    r"|audio/(speech|transcriptions|translations)|images/(generations|edits|variations)|moderations|rerank)"
)


def api_of(path: str) -> API | None:
    """The API that a path is read as; None: none of the four."""
    if path.endswith("/chat/completions"):
        return CHAT
    if path.endswith("/responses"):
        return RESPONSES
    if path.endswith("/messages"):
        return ANTHROPIC
    if path.endswith((":generateContent", ":streamGenerateContent")):
        return GEMINI
    return None


def minimal(path: str) -> bool:
    """A path that is passed on with a minimal record; any other is refused."""
    return _MINIMAL.fullmatch(path) is not None


def error_body(api: str, status: int, code: str, message: str) -> dict[str, Any]:
    """An error as this API's clients expect it, so that they show `message` to a person."""
    if api == ANTHROPIC.name:
        return {"type": "error", "error": {"type": "api_error" if status >= 500 else "invalid_request_error", "message": message}}
    if api == GEMINI.name:
        return {"error": {"code": status, "status": "UNAVAILABLE" if status >= 500 else "FAILED_PRECONDITION", "message": message}}
    return {"error": {"message": message, "type": "server_error" if status >= 500 else "invalid_request_error", "code": code, "param": None}}


def message_of(body: bytes) -> str:
    """What an error of a provider says, at most 500 characters."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return body[:500].decode("utf-8", "replace").strip()
    if isinstance(said, list) and said:
        said = said[0]
    error = reading.group(said).get("error", said)
    return reading.text_of(reading.group(error).get("message") or error)[:500]
