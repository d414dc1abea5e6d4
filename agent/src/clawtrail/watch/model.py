"""What the model is asked and answers: steps of a run, refusals, answers that repeat the system prompt."""

from __future__ import annotations

from typing import Iterable

from .egress import Egress
from .lifecycle import step
from .seen import Seen
from .state import Bounded
from .text import line_digests

PROMPTS = 256
_LINES = 512  #: of one prompt


class Model:
    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._prompts: Bounded[str, frozenset[str]] = Bounded(PROMPTS)

    def instructions(self, session: object, digests: Iterable[object]) -> None:
        """See `Watch.instructions`."""
        if isinstance(session, str):
            self._prompts.put(session, frozenset(d for d in list(digests)[:_LINES] if isinstance(d, str)))

    def request(self, seen: Seen) -> None:
        if seen.word("model", "via") != "proxy":
            step(seen)
            seen.cause("run.start")

    def decision(self, seen: Seen) -> None:
        seen.mark_content()
        via = seen.word("model", "via")
        if via != "proxy":  # the plugin tells of the same one
            seen.cause("model.request")
            step(seen, calls=1, usage=seen.group("usage"))
        if seen.word("decision", "stop") == "refusal":  # most hosts do not tell: the proxy does
            refusals = seen.state.refusals
            refusals[via] = refusals.get(via, 0) + 1
            if refusals[via] >= seen.limits("refusals.repeated")["refusals"]:
                seen.hit("refusals.repeated")
        prompt = self._prompts.get(seen.session) if isinstance(seen.session, str) else None
        if prompt and isinstance(excerpt := seen.group("content").get("excerpt"), str):
            if len(prompt.intersection(line_digests(excerpt))) >= seen.limits("output.repeats-system-prompt")["lines"]:
                seen.hit("output.repeats-system-prompt")
        self._egress.by_text(seen)
