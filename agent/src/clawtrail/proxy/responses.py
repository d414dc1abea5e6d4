"""OpenAI responses. https://platform.openai.com/docs/api-reference/responses"""

from __future__ import annotations

from typing import Any

from . import reading
from .reading import Answer, Asked, group, items

_ENDS = {"response.completed", "response.done", "response.incomplete", "response.failed"}
_OUR_TOOLS = {"function_call", "custom_tool_call", "mcp_call"}


def asked(body: dict[str, Any], path: str) -> Asked:
    given = body.get("input")
    messages = items(given) if isinstance(given, list) else [{"role": "user", "content": given}] if given else []
    tools = items(body.get("tools"))
    spoken = [reading.text_of(body.get("instructions"))]
    spoken += [reading.text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    choice = body.get("tool_choice")
    settings = {"reasoning_effort": group(body.get("reasoning")).get("effort"), "tool_choice": choice if isinstance(choice, str) else group(choice).get("type"),
                "response_format": group(group(body.get("text")).get("format")).get("type")}  # fmt: skip
    return Asked(
        model=body["model"] if isinstance(body.get("model"), str) else None,
        stream=body.get("stream") is True,
        messages=len(messages),
        system="\n".join(text for text in spoken if text),
        tools=reading.names(tools),
        tools_sha256=reading.digest_of_tools(tools),
        offers=reading.offers(body),
        params=reading.params(body) | {k: v for k, v in settings.items() if isinstance(v, str)},
    )


class ResponsesAnswer(Answer):
    def part(self, said: dict[str, Any]) -> None:
        kind, at = str(said.get("type") or ""), said.get("output_index", 0)
        if kind == "response.output_text.delta":
            self.say(said.get("delta"))
        elif kind == "response.refusal.delta":
            self.refuse(said.get("delta"))
        elif kind.startswith("response.reasoning") and kind.endswith(".delta"):
            self.think(said.get("delta"))
        elif kind == "response.output_item.added":
            item = group(said.get("item"))
            if str(item.get("type")) in _OUR_TOOLS:
                self.call(at, item.get("call_id") or item.get("id"), item.get("name"))
        elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            self.call(at).add(said.get("delta"))
        elif kind == "response.output_item.done":
            self._item(at, group(said.get("item")))
        elif kind == "response.created":
            self.id = _name(group(said.get("response")).get("id"))
        elif kind in _ENDS:
            self._end(group(said.get("response")))
            self.closing = self.done = True
        elif kind == "error" or "error" in said:
            self.fail(said.get("error") or said)
            self.closing = self.done = True

    def full(self, said: dict[str, Any]) -> None:
        for at, item in enumerate(items(said.get("output"))):
            self._item(at, item)
            for content in items(item.get("content")) if item.get("type") == "message" else ():
                self.say(content.get("text"))
                self.refuse(content.get("refusal"))
            for summary in items(item.get("summary")):
                self.think(summary.get("text"))
        self._end(said)

    def _item(self, at: Any, item: dict[str, Any]) -> None:
        kind = str(item.get("type") or "")
        if kind in _OUR_TOOLS:
            self.call(at, item.get("call_id") or item.get("id"), item.get("name")).whole(item.get("arguments", item.get("input")))
        elif kind.endswith("_call"):  # a tool that the provider runs itself
            self.call(at, item.get("id"), kind).whole({k: item[k] for k in ("action", "code", "queries") if k in item})

    def _end(self, answer: dict[str, Any]) -> None:
        self.id, self.model = _name(answer.get("id")) or self.id, _name(answer.get("model"))
        usage = group(answer.get("usage"))
        self.count(
            input=usage.get("input_tokens"),
            output=usage.get("output_tokens"),
            cache_read=group(usage.get("input_tokens_details")).get("cached_tokens"),
            reasoning=group(usage.get("output_tokens_details")).get("reasoning_tokens"),
        )
        why = group(answer.get("incomplete_details")).get("reason")
        status = answer.get("status")
        self.stop = {"max_output_tokens": "length", "content_filter": "filter"}.get(str(why), str(why)) if why else "end" if status == "completed" else _name(status)
        if answer.get("error"):
            self.fail(answer["error"])
        elif status == "failed":
            self.fail("the response failed")


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None
