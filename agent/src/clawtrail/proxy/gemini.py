"""Google's generateContent and streamGenerateContent. https://ai.google.dev/api/generate-content

The model's name stands in the path, tool calls have no id, and a stream ends with the connection.
"""

from __future__ import annotations

import re
from typing import Any

from . import reading
from .reading import Answer, Asked, group, items

_STOP = {"STOP": "end", "MAX_TOKENS": "length", "MALFORMED_FUNCTION_CALL": "error", "UNEXPECTED_TOOL_CALL": "error"} | dict.fromkeys(
    ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "LANGUAGE"), "filter"
)
_MODEL = re.compile(r"/models/([^/:]+):")


def asked(body: dict[str, Any], path: str) -> Asked:
    model = _MODEL.search(path)
    system = _either(body, "systemInstruction", "system_instruction")
    config = _either(body, "generationConfig", "generation_config")
    tools = items(body.get("tools"))
    declared = [f for tool in tools for f in items(_either(tool, "functionDeclarations", "function_declarations"))]
    built_in = [name for tool in tools for name in tool if name.replace("_", "").lower() != "functiondeclarations"]
    budget = group(group(config).get("thinkingConfig")).get("thinkingBudget")
    return Asked(
        model=model[1] if model else None,
        stream=":streamGenerateContent" in path,
        messages=len(items(body.get("contents"))),
        system=reading.text_of(group(system).get("parts")),
        tools=reading.names(declared) + built_in,
        tools_sha256=reading.digest_of_tools(tools),
        offers=reading.offers(body),
        params=reading.params(config) | ({"thinking_budget": budget} if isinstance(budget, int) else {}),
    )


def _either(body: dict[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if name in body), None)


class GeminiAnswer(Answer):
    def part(self, said: dict[str, Any]) -> None:
        self.id = said["responseId"] if isinstance(said.get("responseId"), str) else self.id
        self.model = said["modelVersion"] if isinstance(said.get("modelVersion"), str) else self.model
        usage = group(said.get("usageMetadata"))
        self.count(
            input=usage.get("promptTokenCount"),
            output=usage.get("candidatesTokenCount"),
            cache_read=usage.get("cachedContentTokenCount"),
            reasoning=usage.get("thoughtsTokenCount"),
        )
        if said.get("error"):
            self.fail(said["error"])
            self.closing = True
        if group(said.get("promptFeedback")).get("blockReason"):
            self.stop, self.closing = "filter", True
        for candidate in items(said.get("candidates")):
            for part in items(group(candidate.get("content")).get("parts")):
                self._part(part)
            if candidate.get("finishReason"):
                self.stop = _STOP.get(str(candidate["finishReason"]), str(candidate["finishReason"]))
                self.closing = True

    full = part

    def whole(self, body: bytes) -> None:
        """Without `alt=sse` a stream is one JSON array of what its events would say."""
        if not body.lstrip().startswith(b"["):
            return super().whole(body)
        said = self._object(b'{"parts":' + body + b"}")
        if said is None:
            self.bad_events += 1
            return
        for one in items(said["parts"]):
            self.part(one)
        self.done = self.closing

    def end(self) -> None:
        self.done = self.closing

    def _part(self, part: dict[str, Any]) -> None:
        if part.get("thought"):
            self.think(part.get("text"))
        else:
            self.say(part.get("text"))
        if call := group(part.get("functionCall")):
            self.call(len(self.calls), call.get("id"), call.get("name")).whole(call.get("args") or {})
