"""OpenAI chat completions, also vLLM, LM Studio, LiteLLM, OpenRouter and Ollama's `/v1`. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from typing import Any

from . import reading
from .reading import Answer, Asked, group, items

_STOP = {"stop": "end", "tool_calls": "tool", "function_call": "tool", "length": "length", "content_filter": "filter"}


def asked(body: dict[str, Any], path: str) -> Asked:
    messages = items(body.get("messages"))
    tools = [*items(body.get("tools")), *items(body.get("functions"))]
    choice = body.get("tool_choice")
    effort = group(body.get("reasoning")).get("effort")
    settings = {"response_format": group(body.get("response_format")).get("type"), "reasoning_effort": effort,
                "tool_choice": choice if isinstance(choice, str) else group(choice).get("type")}  # fmt: skip
    return Asked(
        model=_name(body.get("model")),
        stream=body.get("stream") is True,
        messages=len(messages),
        system="\n".join(reading.text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")),
        tools=reading.names(tools),
        tools_sha256=reading.digest_of_tools(tools),
        offers=reading.offers(body),
        params=reading.params(body) | {k: v for k, v in settings.items() if isinstance(v, str)},
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class ChatAnswer(Answer):
    def part(self, said: dict[str, Any]) -> None:
        self._head(said)
        for choice in items(said.get("choices")):
            self._message(choice.get("index"), group(choice.get("delta") or choice.get("message")))
            if choice.get("finish_reason"):
                self.stop = _STOP.get(str(choice["finish_reason"]), str(choice["finish_reason"]))
                self.closing = True

    full = part

    def _head(self, said: dict[str, Any]) -> None:
        self.id = _name(said.get("id")) or self.id
        self.model = _name(said.get("model")) or self.model
        usage = group(said.get("usage"))
        self.count(
            input=usage.get("prompt_tokens"),
            output=usage.get("completion_tokens"),
            cache_read=group(usage.get("prompt_tokens_details")).get("cached_tokens"),
            reasoning=group(usage.get("completion_tokens_details")).get("reasoning_tokens"),
        )
        if said.get("error"):
            self.fail(said["error"])
            self.closing = self.done = True

    def _message(self, choice: Any, message: dict[str, Any]) -> None:
        content = message.get("content")
        self.say(content if isinstance(content, str) else reading.text_of(content) if isinstance(content, list) else None)
        self.refuse(message.get("refusal"))
        self.think(message.get("reasoning_content") or message.get("reasoning"))
        for n, call in enumerate(items(message.get("tool_calls"))):
            function = group(call.get("function") or call.get("custom"))
            arguments = function.get("arguments", function.get("input"))
            one = self.call((choice, call.get("index", n)), call.get("id"), function.get("name"))
            one.add(arguments if isinstance(arguments, str) or arguments is None else reading.compact(arguments))
        if function := group(message.get("function_call")):  # the API's first form
            self.call((choice, "function"), None, function.get("name")).add(function.get("arguments"))
