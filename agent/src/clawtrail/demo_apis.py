"""The demo model in the words of four APIs: what a request says, as OpenAI's chat messages, and an answer, whole or as a stream's events.

OpenAI chat completions and responses, Anthropic messages, Google generateContent; each as OpenClaw's client speaks it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the model says: `text`, and then the `tool` that it calls, if any.

    `refuses`: it says so in the API's own field, where it has one (Google's has none). `id` and `call_id`: 32 and 12 letters that the APIs put their prefixes before. `prompt`, `completion`: tokens.
    """

    id: str
    model: str
    text: str
    tool: str | None
    arguments: Json
    call_id: str
    prompt: int
    completion: int
    refuses: bool = False

    @property
    def written(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class API:
    """`messages`: of a request's body, as chat messages. `events`: (the event's name or "", its data), `last`: what ends a stream."""

    messages: Callable[[Json], list[Json]]
    whole: Callable[[Answer], Json]
    events: Callable[[Answer], Iterator[tuple[str, Json]]]
    last: bytes = b""


def api_of(path: str) -> API | None:
    """The API of a path, with or without a version before it; None: none of the four."""
    path = path.partition("?")[0]
    if path.endswith("/chat/completions"):
        return CHAT
    if path.endswith("/responses"):
        return RESPONSES
    if path.endswith("/messages"):
        return ANTHROPIC
    return GEMINI if path.endswith((":generateContent", ":streamGenerateContent")) else None


def _dicts(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else _dicts(content)


def _system(content: Any) -> list[Json]:
    return [{"role": "system", "content": content}] if content else []


def _said(calls: list[Json], content: Any) -> Json:
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


# -- OpenAI chat completions: https://platform.openai.com/docs/api-reference/chat ------------------------------------


def _chat_messages(body: Json) -> list[Json]:
    return _dicts(body.get("messages"))


def _chat_call(answer: Answer) -> Json:
    return {"id": f"call_{answer.call_id}", "type": "function", "function": {"name": answer.tool, "arguments": answer.written}}


def _chat_usage(answer: Answer) -> Json:
    return {"prompt_tokens": answer.prompt, "completion_tokens": answer.completion, "total_tokens": answer.prompt + answer.completion}


def _chat_whole(answer: Answer) -> Json:
    message = _said([_chat_call(answer)] if answer.tool else [], None if answer.refuses else answer.text)
    message |= {"refusal": answer.text} if answer.refuses else {}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if answer.tool else "stop"}
    return {
        "id": f"chatcmpl-{answer.id}", "object": "chat.completion", "created": int(time.time()), "model": answer.model,
        "choices": [choice], "usage": _chat_usage(answer),
    }  # fmt: skip


def _chat_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    base = {"id": f"chatcmpl-{answer.id}", "created": int(time.time()), "model": answer.model, "object": "chat.completion.chunk"}

    def part(delta: Json, finish: str | None = None) -> tuple[str, Json]:
        return "", base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield part({"role": "assistant", **({"content": None, "refusal": answer.text} if answer.refuses else {"content": answer.text})})
    if answer.tool:
        yield part({"tool_calls": [{"index": 0, **_chat_call(answer)}]})
    yield part({}, "tool_calls" if answer.tool else "stop")
    yield "", base | {"choices": [], "usage": _chat_usage(answer)}


# -- OpenAI responses: https://platform.openai.com/docs/api-reference/responses --------------------------------------


def _responses_messages(body: Json) -> list[Json]:
    out = _system(body.get("instructions"))
    given = body.get("input")
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else _dicts(given):
        kind = item.get("type")
        if kind == "function_call_output":
            out.append({"role": "tool", "content": item.get("output")})
        elif kind == "function_call":
            if not out or out[-1]["role"] != "assistant":  # a text of the same turn stands before it as an item of its own
                out.append(_said([], ""))
            out[-1].setdefault("tool_calls", []).append({"function": {"name": item.get("name")}})
        elif "role" in item:
            out.append({"role": item["role"], "content": item.get("content")})
    return out


def _responses_items(answer: Answer) -> list[Json]:
    content: list[Json] = [{"type": "refusal", "refusal": answer.text} if answer.refuses else {"type": "output_text", "text": answer.text, "annotations": []}]
    items: list[Json] = [{"type": "message", "id": f"msg_{answer.id}", "status": "completed", "role": "assistant", "content": content}]
    if answer.tool:
        items.append({"type": "function_call", "id": f"fc_{answer.id}", "call_id": f"call_{answer.call_id}", "status": "completed", "name": answer.tool,
                      "arguments": answer.written})  # fmt: skip
    return items


def _responses_whole(answer: Answer) -> Json:
    usage = {
        "input_tokens": answer.prompt, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": answer.completion,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": answer.prompt + answer.completion,
    }  # fmt: skip
    return {
        "id": f"resp_{answer.id}", "object": "response", "created_at": int(time.time()), "status": "completed", "model": answer.model, "error": None,
        "incomplete_details": None, "output": _responses_items(answer), "usage": usage,
    }  # fmt: skip


def _responses_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    whole = _responses_whole(answer)
    said: list[Json] = [{"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}}]
    for at, item in enumerate(whole["output"]):
        place = {"output_index": at, "item_id": item["id"]}
        if item["type"] == "message":
            part = item["content"][0]
            event, member = ("refusal", "refusal") if answer.refuses else ("output_text", "text")
            said += [
                {"type": "response.output_item.added", "output_index": at, "item": {**item, "status": "in_progress", "content": []}},
                {"type": "response.content_part.added", **place, "content_index": 0, "part": {**part, member: ""}},
                {"type": f"response.{event}.delta", **place, "content_index": 0, "delta": answer.text},
                {"type": f"response.{event}.done", **place, "content_index": 0, member: answer.text},
                {"type": "response.content_part.done", **place, "content_index": 0, "part": part},
            ]
        else:
            said += [
                {"type": "response.output_item.added", "output_index": at, "item": {**item, "status": "in_progress", "arguments": ""}},
                {"type": "response.function_call_arguments.delta", **place, "delta": answer.written},
                {"type": "response.function_call_arguments.done", **place, "arguments": answer.written},
            ]
        said.append({"type": "response.output_item.done", "output_index": at, "item": item})
    said.append({"type": "response.completed", "response": whole})
    for number, one in enumerate(said):
        yield one["type"], one | {"sequence_number": number}


# -- Anthropic messages: https://docs.anthropic.com/en/api/messages --------------------------------------------------


def _anthropic_messages(body: Json) -> list[Json]:
    out = _system(body.get("system"))
    for message in _dicts(body.get("messages")):
        blocks = _blocks(message.get("content"))
        if message.get("role") == "assistant":
            out.append(_said([{"function": {"name": b.get("name")}} for b in blocks if b.get("type") == "tool_use"], blocks))
            continue
        out += [{"role": "tool", "content": b.get("content")} for b in blocks if b.get("type") == "tool_result"]
        if texts := [b for b in blocks if b.get("type") == "text"]:
            out.append({"role": "user", "content": texts})
    return out


def _anthropic_whole(answer: Answer) -> Json:
    content: list[Json] = [{"type": "text", "text": answer.text}]
    if answer.tool:
        content.append({"type": "tool_use", "id": f"toolu_{answer.call_id}", "name": answer.tool, "input": answer.arguments})
    return {
        "id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": answer.model, "content": content,
        "stop_reason": "tool_use" if answer.tool else "refusal" if answer.refuses else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": answer.prompt, "output_tokens": answer.completion},
    }  # fmt: skip


def _anthropic_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    whole = _anthropic_whole(answer)
    head = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": answer.prompt, "output_tokens": 1}}
    said: list[Json] = [{"type": "message_start", "message": head}]
    for at, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": answer.text}
        else:
            empty, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": answer.written}
        said += [
            {"type": "content_block_start", "index": at, "content_block": empty},
            {"type": "content_block_delta", "index": at, "delta": delta},
            {"type": "content_block_stop", "index": at},
        ]
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    said += [{"type": "message_delta", "delta": end, "usage": {"output_tokens": answer.completion}}, {"type": "message_stop"}]
    for one in said:
        yield one["type"], one


# -- Google generateContent: https://ai.google.dev/api/generate-content ----------------------------------------------


def _gemini_messages(body: Json) -> list[Json]:
    system = body.get("systemInstruction")
    out = _system(system.get("parts") if isinstance(system, dict) else None)
    for content in _dicts(body.get("contents")):
        parts = _dicts(content.get("parts"))
        if content.get("role") == "model":
            out.append(_said([{"function": p["functionCall"]} for p in parts if isinstance(p.get("functionCall"), dict)], parts))
            continue
        out += [{"role": "tool", "content": _gemini_result(p["functionResponse"])} for p in parts if isinstance(p.get("functionResponse"), dict)]
        if texts := [p for p in parts if isinstance(p.get("text"), str)]:
            out.append({"role": "user", "content": texts})
    return out


def _gemini_result(given: Json) -> str:
    response = given.get("response")
    values = list(response.values()) if isinstance(response, dict) else [response]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(response, ensure_ascii=False)


def _gemini_part(answer: Answer, *parts: Json, **more: Any) -> Json:
    candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}, **more}
    return {"candidates": [candidate], "modelVersion": answer.model, "responseId": answer.id}


def _gemini_end(answer: Answer, *parts: Json) -> Json:
    if answer.tool:
        parts += ({"functionCall": {"name": answer.tool, "args": answer.arguments}},)
    usage = {"promptTokenCount": answer.prompt, "candidatesTokenCount": answer.completion, "totalTokenCount": answer.prompt + answer.completion}
    return _gemini_part(answer, *parts, finishReason="STOP") | {"usageMetadata": usage}


def _gemini_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    yield "", _gemini_part(answer, {"text": answer.text})
    yield "", _gemini_end(answer)


CHAT = API(_chat_messages, _chat_whole, _chat_events, b"data: [DONE]\n\n")
RESPONSES = API(_responses_messages, _responses_whole, _responses_events)
ANTHROPIC = API(_anthropic_messages, _anthropic_whole, _anthropic_events)
GEMINI = API(_gemini_messages, lambda answer: _gemini_end(answer, {"text": answer.text}), _gemini_events)
