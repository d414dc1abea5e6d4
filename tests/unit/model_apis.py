"""The four APIs as providers speak them: one tool call with a text before it, streamed and whole, and what is read of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

TEXT = "I will look at the file – première étape."
ARGUMENTS = {"path": "/etc/hosts", "note": "ünïcode"}
SYSTEM = "You are an agent."


def sse(*said: dict[str, Any], named: bool = False) -> list[bytes]:
    head = "event: {type}\n" if named else ""
    return [(head.format(type=s.get("type")) + "data: " + json.dumps(s) + "\n\n").encode() for s in said]


@dataclass(frozen=True)
class Spoken:
    """`closing`: the place in `events` of the finish marker; `reads`: what the record says of tokens."""

    name: str
    path: str
    whole_path: str
    request: dict[str, Any]
    events: list[bytes]
    closing: int
    whole: dict[str, Any]
    refusal: dict[str, Any]
    reads: dict[str, int] = field(default_factory=dict)
    call_id: str | None = "call_1"

    def without_tools(self) -> dict[str, Any]:
        return {k: v for k, v in self.request.items() if k != "tools"}


_ARGS = json.dumps(ARGUMENTS, ensure_ascii=False)
_PIECES = [TEXT[:10], TEXT[10:25], TEXT[25:]]
_HALF = len(_ARGS) // 2


def _chat() -> Spoken:
    def part(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "resp_1", "model": "model-2026", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "read", "arguments": _ARGS[:_HALF]}}
    usage = {"prompt_tokens": 120, "completion_tokens": 30, "prompt_tokens_details": {"cached_tokens": 100}}
    events = sse(
        part({"role": "assistant", "content": ""}), *(part({"content": piece}) for piece in _PIECES), part({"tool_calls": [call]}),
        part({"tool_calls": [{"index": 0, "function": {"arguments": _ARGS[_HALF:]}}]}), part({}, "tool_calls"),
        {"id": "resp_1", "model": "model-2026", "choices": [], "usage": usage},
    )  # fmt: skip
    message = {"role": "assistant", "content": TEXT, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "read", "arguments": _ARGS}}]}
    whole = {"id": "resp_1", "model": "model-2026", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": usage}
    request = {
        "model": "model-a", "stream": True, "temperature": 0.2, "max_completion_tokens": 8192, "tool_choice": "auto",
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "read it"}],
        "tools": [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}],
    }  # fmt: skip
    refused = {"id": "r", "choices": [{"index": 0, "message": {"role": "assistant", "content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]}
    return Spoken("openai-completions", "/chat/completions", "/chat/completions", request, [*events, b"data: [DONE]\n\n"], 6, whole, refused,
                  {"input": 120, "output": 30, "cache_read": 100})  # fmt: skip


def _responses() -> Spoken:
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": _ARGS}
    message = {"type": "message", "content": [{"type": "output_text", "text": TEXT}]}
    usage = {"input_tokens": 120, "output_tokens": 30, "output_tokens_details": {"reasoning_tokens": 7}}
    whole = {"id": "resp_1", "model": "model-2026", "status": "completed", "output": [message, item], "usage": usage, "error": None}
    events = sse(
        {"type": "response.created", "response": {"id": "resp_1"}},
        *({"type": "response.output_text.delta", "output_index": 0, "delta": piece} for piece in _PIECES),
        {"type": "response.output_item.added", "output_index": 1, "item": {**item, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": _ARGS[:_HALF]},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": _ARGS[_HALF:]},
        {"type": "response.output_item.done", "output_index": 1, "item": item},
        {"type": "response.completed", "response": whole},
        named=True,
    )
    request = {
        "model": "model-a", "stream": True, "temperature": 0.2, "max_output_tokens": 8192, "store": False, "instructions": SYSTEM,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "read it"}]}], "tools": [{"type": "function", "name": "read"}],
    }  # fmt: skip
    refused = {**whole, "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}]}
    return Spoken("openai-responses", "/responses", "/responses", request, events, 8, whole, refused, {"input": 120, "output": 30, "reasoning": 7})


def _anthropic() -> Spoken:
    head = {"id": "resp_1", "model": "model-2026", "usage": {"input_tokens": 120, "cache_read_input_tokens": 100, "output_tokens": 1}}
    events = sse(
        {"type": "message_start", "message": head},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in _PIECES),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "call_1", "name": "read", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": _ARGS[:_HALF]}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": _ARGS[_HALF:]}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 30}},
        {"type": "message_stop"},
        named=True,
    )
    content = [{"type": "text", "text": TEXT}, {"type": "tool_use", "id": "call_1", "name": "read", "input": ARGUMENTS}]
    whole = {**head, "type": "message", "content": content, "stop_reason": "tool_use", "usage": {**head["usage"], "output_tokens": 30}}
    request = {
        "model": "model-a", "stream": True, "temperature": 0.2, "max_tokens": 8192, "system": [{"type": "text", "text": SYSTEM}],
        "messages": [{"role": "user", "content": "read it"}], "tools": [{"name": "read", "input_schema": {"type": "object"}}],
    }  # fmt: skip
    refused = {**head, "content": [{"type": "text", "text": "I cannot."}], "stop_reason": "refusal"}
    return Spoken("anthropic-messages", "/v1/messages", "/v1/messages", request, events, 10, whole, refused,
                  {"input": 120, "output": 30, "cache_read": 100})  # fmt: skip


def _gemini() -> Spoken:
    def part(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"candidates": [{"index": 0, "content": {"role": "model", "parts": list(parts)}, **more}], "responseId": "resp_1", "modelVersion": "model-2026"}

    call = {"functionCall": {"name": "read", "args": ARGUMENTS}}
    usage = {"promptTokenCount": 120, "candidatesTokenCount": 30, "thoughtsTokenCount": 7}
    events = sse(
        *(part({"text": piece}) for piece in _PIECES), part({"text": "hm", "thought": True}), part(call),
        {**part(finishReason="STOP"), "usageMetadata": usage},
    )  # fmt: skip
    whole = {**part({"text": TEXT}, call, finishReason="STOP"), "usageMetadata": usage}
    request = {
        "contents": [{"role": "user", "parts": [{"text": "read it"}]}], "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "tools": [{"functionDeclarations": [{"name": "read"}]}], "generationConfig": {"temperature": 0.2, "maxOutputTokens": 8192},
    }  # fmt: skip
    refused = {"promptFeedback": {"blockReason": "SAFETY"}, "responseId": "r"}
    return Spoken("google-generative-ai", "/v1beta/models/model-a:streamGenerateContent", "/v1beta/models/model-a:generateContent", request,
                  events, 5, whole, refused, {"input": 120, "output": 30, "reasoning": 7}, None)  # fmt: skip


APIS = [_chat(), _responses(), _anthropic(), _gemini()]
