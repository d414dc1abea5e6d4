"""Anthropic messages. https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

from typing import Any

from . import reading
from .reading import Answer, Asked, group, items

_STOP = {
    "end_turn": "end", "stop_sequence": "end", "pause_turn": "end", "tool_use": "tool", "max_tokens": "length",
    "model_context_window_exceeded": "length", "refusal": "refusal",
}  # fmt: skip
_TOOL_USES = ("tool_use", "server_tool_use", "mcp_tool_use")


def asked(body: dict[str, Any], path: str) -> Asked:
    tools = items(body.get("tools"))
    thinking = group(body.get("thinking"))
    settings: dict[str, Any] = {"tool_choice": group(body.get("tool_choice")).get("type"), "thinking": thinking.get("type")}
    found = {k: v for k, v in settings.items() if isinstance(v, str)}
    if isinstance(thinking.get("budget_tokens"), int):
        found["thinking_budget"] = thinking["budget_tokens"]
    return Asked(
        model=body["model"] if isinstance(body.get("model"), str) else None,
        stream=body.get("stream") is True,
        messages=len(items(body.get("messages"))),
        system=reading.text_of(body.get("system")),
        tools=reading.names(tools),
        tools_sha256=reading.digest_of_tools(tools),
        offers=reading.offers(body),
        params=reading.params(body) | found,
    )


class AnthropicAnswer(Answer):
    def part(self, said: dict[str, Any]) -> None:
        kind, at = said.get("type"), said.get("index", 0)
        if kind == "content_block_delta":
            self._delta(at, group(said.get("delta")))
        elif kind == "content_block_start":
            self._block(at, group(said.get("content_block")))
        elif kind == "message_start":
            self._head(group(said.get("message")))
        elif kind == "message_delta":
            self._usage(group(said.get("usage")))
            self._stop(group(said.get("delta")).get("stop_reason"))
        elif kind == "message_stop":
            self.closing = self.done = True
        elif kind == "error":
            self.fail(said.get("error") or said)
            self.closing = self.done = True

    def full(self, said: dict[str, Any]) -> None:
        if said.get("type") == "error" or "error" in said:
            return self.fail(said.get("error") or said)
        for at, block in enumerate(items(said.get("content"))):
            self._block(at, block)
        self._head(said)
        self._stop(said.get("stop_reason"))

    def _head(self, message: dict[str, Any]) -> None:
        self.id = message["id"] if isinstance(message.get("id"), str) else None
        self.model = message["model"] if isinstance(message.get("model"), str) else None
        self._usage(group(message.get("usage")))

    def _usage(self, usage: dict[str, Any]) -> None:
        self.count(
            input=usage.get("input_tokens"),
            output=usage.get("output_tokens"),
            cache_read=usage.get("cache_read_input_tokens"),
            cache_write=usage.get("cache_creation_input_tokens"),
        )

    def _stop(self, reason: Any) -> None:
        if reason:
            self.stop, self.closing = _STOP.get(str(reason), str(reason)), True

    def _block(self, at: Any, block: dict[str, Any]) -> None:
        kind = str(block.get("type") or "")
        if kind in _TOOL_USES:
            call = self.call(at, block.get("id"), block.get("name"))
            if block.get("input"):
                call.whole(block["input"])
        elif kind == "text":
            self.say(block.get("text"))
        elif kind == "thinking":
            self.think(block.get("thinking"))

    def _delta(self, at: Any, delta: dict[str, Any]) -> None:
        kind = delta.get("type")
        if kind == "text_delta":
            self.say(delta.get("text"))
        elif kind == "input_json_delta":
            self.call(at).add(delta.get("partial_json"))
        elif kind == "thinking_delta":
            self.think(delta.get("thinking"))
