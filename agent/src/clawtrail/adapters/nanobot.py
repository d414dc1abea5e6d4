"""nanobot (PyPI `nanobot-ai` 0.3) → events: a hook that stands before every tool, and a launcher that puts it there.

In a program, for the runs that are given it, or for every run of the process, subagents included:

    result = await bot.run("…", session_key="s-1", hooks=[Audit(recorder)])
    install(Audit(recorder))

The recorder may be in another process, a `clawtrail forwarder`: then `Audit(Relay(socket, agent))`, and the model is asked
through its proxy.

For the command line and the gateway: `clawtrail nanobot agent -m "…"`, `clawtrail nanobot gateway`.

No record, no action: nanobot swallows what a hook raises, unless the hook says `reraise`, as this one does. Then what
cannot be recorded ends the run, and the tool does not run.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import importlib
import inspect
import logging
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Sequence

from .. import event as ev
from ..errors import ConfigurationError
from ..recorder import Recorder
from ..redact import Found, Redactor
from ..rules import Rules
from ..watch import Watch
from . import hooks
from .relay import Relay
from .scribe import Scribe, trace

if TYPE_CHECKING:

    class AgentHook:
        def __init__(self, reraise: bool = False) -> None: ...

else:
    try:
        from nanobot.agent.hook import AgentHook
    except ImportError as e:
        raise ConfigurationError(f"this adapter needs nanobot 0.3 ({e}); expected: pip install 'nanobot-ai>=0.3,<0.4'") from None

log = logging.getLogger("clawtrail.adapters.nanobot")

_STOP = {"stop": "end", "tool_calls": "tool", "function_call": "tool", "content_filter": "filter"}
_NOBODY = {"cron": "cron", "heartbeat": "heartbeat", "system": "system"}  # channels that no person speaks on
_HOOKS = (
    "before_run", "before_iteration", "before_execute_tools", "before_execute_tool", "after_execute_tool",
    "on_execute_tool_error", "on_provider_tool_event", "after_iteration", "after_run", "on_finally",
)  # fmt: skip


@dataclass
class _Run:
    """What is known of a run. A run that a tool of another one started has that one as `parent`."""

    parent: _Run | None
    session: str | None = None
    channel: str = ""
    chat: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    trace: dict[str, str] = field(default_factory=dict)
    span: str = ""  # of the model call that goes on
    began: int = field(default_factory=time.perf_counter_ns)
    start: str | None = None  # the event of that name
    spawn: str | None = None
    request: str | None = None
    asked: int = 0
    decided: str | None = None
    step: int = 0
    tools: int = 0
    ended: bool = False  # a timer that a tool set up runs in its context for ever
    open: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # call id: began, its fields
    told: set[str] = field(default_factory=set)  # call ids of this step that reached the hook


_current: contextvars.ContextVar[_Run | None] = contextvars.ContextVar("clawtrail_nanobot_run", default=None)
_traceparent: contextvars.ContextVar[str] = contextvars.ContextVar("clawtrail_nanobot_traceparent", default="")
_spec: contextvars.ContextVar[Any] = contextvars.ContextVar("clawtrail_nanobot_spec", default=None)


class Audit(AgentHook):
    """The hook. One instance serves any number of runs, also at the same time, of one event loop.

    Args:
        recorder: where events go; its policy decides how long a tool waits for room. A `Relay` has rules and watch on its
            other side, and every request to the model says in `traceparent` which model call it is.
        rules: what flags a tool call, or refuses it: then the run ends; None: nothing does.
        watch: the state of sessions; its own unless given.
    """

    def __init__(self, recorder: Recorder | Relay, rules: Rules | None = None, watch: Watch | None = None) -> None:
        super().__init__(reraise=True)
        self.runs = 0
        self._scribe: Scribe | Relay = recorder if isinstance(recorder, Relay) else Scribe(recorder, rules, watch)
        self._trace = trace()

    # -- runs ----------------------------------------------------------------------------------------------------

    async def before_run(self, context: Any) -> None:
        spec, asked = _spec.get(), _request()
        parent = _current.get()
        run = _Run(parent=None if parent is None or parent.ended else parent)
        _current.set(run)  # first of all: what fails from here on must not end the parent's run
        run.trace = run.parent.trace if run.parent else self._trace or {"id": uuid.uuid4().hex}
        self.runs += 1
        run.session = getattr(spec, "session_key", None) or getattr(asked, "session_key", None)
        run.channel, run.chat = str(getattr(asked, "channel", None) or "cli"), str(getattr(asked, "chat_id", None) or "")
        run.model = self._model(getattr(spec, "runtime", None) or getattr(asked, "runtime", None))
        message = _last_user(context.messages)
        started = dict(run.model)
        if prompt := _system(context.messages):
            started["system"] = self._scribe.digest(prompt)
        definitions = spec.tools.get_definitions() if hasattr(getattr(spec, "tools", None), "get_definitions") else None
        if definitions:
            started |= {"tools": self._scribe.digest(ev.dumps(ev.clean(definitions))), "tools_n": len(definitions)}
        trigger: dict[str, Any] = {"type": _NOBODY.get(run.channel, "user"), "ref": getattr(asked, "message_id", None)}
        cause = None
        if run.parent is not None:
            peer = {"agent": self._scribe.agent, "session": run.session, "run": run.id, "role": "child", "proof": "host"}
            spawn = {"peer": peer, "caused_by": run.parent.decided or run.parent.start, "content": self._content(message)}
            cause = run.spawn = await self._tell("subagent.start", "attempt", run.parent, spawn)
            trigger = {"type": "agent", "ref": run.parent.id}
        elif message and trigger["type"] == "user":
            actor = {"type": "user", "id": getattr(asked, "sender_id", None), "surface": run.channel}
            cause = await self._tell("message.in", "success", run, {"actor": hooks.some(actor), "content": self._content(message)})
        run.start = await self._tell("run.start", "attempt", run, {
            "caused_by": cause, "trigger": hooks.some(trigger), "model": hooks.some(started),
            "content": self._scribe.content(message, excerpt=False) if message else None,
        })  # fmt: skip

    async def after_run(self, context: Any) -> None:
        run = _current.get()
        if run is not None and run.parent is None and context.final_content:
            target = hooks.some({"type": "channel", "id": ":".join(part for part in (run.channel, run.chat) if part)})
            fields = {"caused_by": run.decided, "content": self._content(context.final_content), "target": target}
            await self._tell("message.out", "success", run, fields)

    async def on_finally(self, context: Any) -> None:
        """The end of the run, in whichever way. What it has to tell is too late to keep anything from happening: it never raises."""
        run = _current.get()
        if run is None:
            return
        _current.set(run.parent)
        run.ended = True
        if run.start is None:  # refused: what has no beginning on record has no end
            return
        raised = context.exception
        cancelled = isinstance(raised, asyncio.CancelledError)
        error: dict[str, Any] | None = {"type": type(raised).__name__, "message": ev.written(raised)} if raised is not None else None
        if error is None and context.error:
            error = {"type": str(context.stop_reason or "error"), "message": ev.written(context.error)}
        outcome = "unknown" if cancelled else "failure" if error else "success"
        for began, call in list(run.open.values()):
            lost = {**call, "duration_us": _since(began), "error": {"type": "interrupted", "message": "the run ended before the tool did"}}
            self._tell_late("tool.result", "unknown", run, lost)
        if run.request is not None:
            self._tell_late("model.decision", outcome if error else "unknown", run, {
                "caused_by": run.request, "model": {**run.model, "via": "hook"}, "trace": self._span(run), "decision": {"stop": "cancel" if cancelled else "error"},
                "duration_us": _since(run.asked), "error": error})  # fmt: skip
        usage = _usage(context.usage) | {"steps": run.step, "tools": run.tools}
        self._tell_late("run.end", outcome, run, {
            "caused_by": run.start, "usage": hooks.some(usage), "duration_us": _since(run.began), "error": error,
            "decision": {"stop": "cancel" if cancelled else "error" if error else "end"}})  # fmt: skip
        if run.parent is not None and run.spawn:
            peer = {"agent": self._scribe.agent, "session": run.session, "run": run.id, "role": "child", "proof": "host"}
            self._tell_late("subagent.end", outcome, run.parent, {"caused_by": run.spawn, "peer": peer, "error": error, "duration_us": _since(run.began)})

    # -- the model -----------------------------------------------------------------------------------------------

    async def before_iteration(self, context: Any) -> None:
        run = self._run(context)
        run.step += 1
        run.told.clear()
        run.span = uuid.uuid4().hex[:16]
        if isinstance(self._scribe, Relay):
            _traceparent.set(f"00-{run.trace['id']}-{run.span}-01")
            _tell_the_model()
        fields = {"caused_by": run.start, "model": {**run.model, "via": "hook"}, "content": {"segments": len(context.messages)}, "trace": self._span(run)}
        run.request, run.asked = await self._tell("model.request", "attempt", run, fields), time.perf_counter_ns()

    async def before_execute_tools(self, context: Any) -> None:
        await self._decision(context)

    async def after_iteration(self, context: Any) -> None:
        run = self._run(context)
        await self._decision(context)
        events = context.tool_events or ()
        for n, call in enumerate(context.tool_calls if context.tool_results else ()):
            if str(call.id) not in run.told:  # nanobot itself refused it, before any hook was asked
                detail = events[n].get("detail") if n < len(events) else None
                await self._tell("tool.result", "denied", run, {
                    "tool": self._tool(call, None), "params": _params(call.arguments), "caused_by": run.decided,
                    "error": hooks.some({"type": "refused", "message": detail})})  # fmt: skip

    async def _decision(self, context: Any) -> None:
        run, response = self._run(context), context.response
        if run.request is None or response is None:
            return
        asked, run.request = run.request, None
        stop = str(response.finish_reason)
        failed = stop == "error"
        calls = [{"id": str(call.id), "tool": ev.written(call.name)} for call in response.tool_calls]
        error = None
        if failed:
            code = getattr(response, "error_code", None) or getattr(response, "error_status_code", None)
            kind = getattr(response, "error_type", None) or getattr(response, "error_kind", None) or "model"
            error = hooks.some({"type": ev.written(kind), "code": code, "message": ev.written(response.content or "")})
        run.decided = await self._tell("model.decision", "failure" if failed else "success", run, {
            "caused_by": asked, "model": {**run.model, "via": "hook"}, "trace": self._span(run), "error": error, "duration_us": _since(run.asked),
            "content": self._content(None if failed else response.content),
            "decision": hooks.some({"stop": _STOP.get(stop, stop), "calls": calls or None}),
            "usage": hooks.some(_usage(response.usage or context.usage)),
        })  # fmt: skip

    # -- tools ---------------------------------------------------------------------------------------------------

    async def before_execute_tool(self, context: Any, tool_call: Any, tool: Any, params: Any) -> None:
        run = self._run(context)
        given = _params(params)
        described = self._tool(tool_call, tool)
        content = self._scribe.content(ev.dumps(ev.clean(given)), excerpt=False)
        fields = {"tool": described, "params": given, "content": content, "target": hooks.target({}, given), "caused_by": run.decided}
        attempt = await self._tell("tool.call", "attempt", run, fields)
        run.tools += 1
        run.told.add(str(tool_call.id))
        run.open[str(tool_call.id)] = (time.perf_counter_ns(), {"tool": described, "caused_by": attempt})

    async def after_execute_tool(self, context: Any, tool_call: Any, tool: Any, params: Any, result: Any) -> None:
        text = hooks.text(result)
        code = _exit_code(text) if tool_call.name == "exec" else 0
        await self._ended(context, tool_call, "failure" if code else "success", text, {"type": "exit", "code": code} if code else None)

    async def on_execute_tool_error(self, context: Any, tool_call: Any, tool: Any, params: Any, error: Any) -> None:
        kind = type(error).__name__ if isinstance(error, BaseException) else "error"
        denied = isinstance(error, PermissionError)
        await self._ended(context, tool_call, "denied" if denied else "failure", None, {"type": kind, "message": ev.written(error)})

    async def on_provider_tool_event(self, context: Any, event: dict[str, Any]) -> None:
        """A tool that the provider ran on its side: nothing of ours stands before it, so there is no attempt to refuse."""
        phase = event.get("phase")
        run = self._run(context)
        tool = {"name": ev.written(event.get("name") or "unknown"), "type": "provider", "call_id": str(event.get("call_id"))}
        if phase == "start":
            await self._tell("tool.call", "attempt", run, {"tool": tool, "params": _params(event.get("arguments")), "caused_by": run.request})
        elif phase in ("end", "error"):
            failed = phase == "error"
            error = {"type": "error", "message": ev.written(event.get("error"))} if failed else None
            result = None if failed else self._content(hooks.text(event.get("result")))
            await self._tell("tool.result", "failure" if failed else "success", run, {"tool": tool, "content": result, "error": error})

    async def _ended(self, context: Any, call: Any, outcome: str, text: str | None, error: dict[str, Any] | None) -> None:
        run = self._run(context)
        began, fields = run.open.pop(str(call.id), (0, {"tool": self._tool(call, None)}))
        fields = {**fields, "content": self._content(text), "error": error, "duration_us": _since(began) if began else None}
        await self._tell("tool.result", outcome, run, fields)

    def _tool(self, call: Any, tool: Any) -> dict[str, Any]:
        name = ev.written(call.name)
        server = getattr(tool, "_server_name", None)
        kind = "mcp" if server or name.startswith("mcp_") else "builtin"
        return hooks.some({"name": name, "type": kind, "call_id": str(call.id), "server": server}) or {}

    # -- shared --------------------------------------------------------------------------------------------------

    def _run(self, context: Any) -> _Run:
        run = _current.get()
        if run is None:  # the hook was called outside of AgentRunner.run(); the event is worth more than its run
            run = _Run(None)
            _current.set(run)
        run.session = run.session or getattr(context, "session_key", None)
        return run

    async def _tell(self, kind: str, outcome: str, run: _Run, fields: dict[str, Any]) -> str:
        return (await self._scribe.arecord(kind, outcome, self._common(run) | fields)).id

    def _tell_late(self, kind: str, outcome: str, run: _Run, fields: dict[str, Any]) -> None:
        try:
            self._scribe.record(kind, outcome, self._common(run) | fields)
        except Exception as e:
            log.error("the %s of run %s is not on record: %s", kind, run.id, e)

    def _common(self, run: _Run) -> dict[str, Any]:
        return {"session": run.session, "run": run.id, "step": run.step or None, "trace": run.trace or self._trace}

    def _span(self, run: _Run) -> dict[str, str]:
        return {**run.trace, "span": run.span}

    def _content(self, text: str | None) -> dict[str, Any] | None:
        return self._scribe.content(text) if text else None

    @staticmethod
    def _model(runtime: Any) -> dict[str, Any]:
        provider = type(getattr(runtime, "provider", None)).__name__ if runtime is not None else None
        return hooks.some({"provider": provider, "requested": getattr(runtime, "model", None)}) or {}


def install(audit: Audit) -> None:
    """From now on every run of this process has the hook, last: subagents, and the turns that nanobot gives no hooks.

    Raises ConfigurationError when this nanobot is not built as the adapter knows it.
    """
    import nanobot  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from nanobot.agent.hook import CompositeHook  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from nanobot.agent.runner import AgentRunner  # type: ignore[import-not-found,import-untyped,unused-ignore]

    run = AgentRunner.run
    missing = [name for name in _HOOKS if not hasattr(AgentHook, name)]
    if missing or list(inspect.signature(run).parameters) != ["self", "spec"] or "reraise" not in inspect.signature(AgentHook.__init__).parameters:
        raise ConfigurationError(f"nanobot {nanobot.__version__} is not built as expected ({' '.join(missing) or 'AgentRunner.run'}); expected nanobot-ai 0.3")

    async def audited(self: Any, spec: Any) -> Any:
        inner = getattr(spec.hook, "_hooks", None) or ([spec.hook] if spec.hook is not None else [])
        if not any(isinstance(hook, Audit) for hook in inner):
            spec = dataclasses.replace(spec, hook=CompositeHook([*inner, audit]))
        token = _spec.set(spec)
        try:
            return await run(self, spec)
        finally:
            _spec.reset(token)

    AgentRunner.run = audited


_telling: set[str] = set()  #: packages whose clients say which model call a request is


def _tell_the_model() -> None:
    """From now on requests to a model carry `traceparent`; nobody else's do, and so no web page learns of a run."""
    for package, client in (("openai", "AsyncOpenAI"), ("anthropic", "AsyncAnthropic")):
        if package in _telling or (package != "openai" and package not in sys.modules):  # nanobot loads the one that it needs; openai late
            continue
        made = getattr(importlib.import_module(package), client)
        made._prepare_request = _telling_of(made._prepare_request)
        _telling.add(package)


def _telling_of(prepare: Any) -> Any:
    async def prepared(self: Any, request: Any) -> None:
        await prepare(self, request)
        if said := _traceparent.get():
            request.headers["traceparent"] = said

    return prepared


def _stay() -> None:
    """`/restart` would go on as a nanobot without the hook: now it ends this process, and a supervisor starts the launcher again."""
    from nanobot.agent.loop import AgentLoop  # type: ignore[import-not-found,import-untyped,unused-ignore]

    made = AgentLoop.__init__

    @functools.wraps(made)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.restart_mode = "exit"

    AgentLoop.__init__ = make


def mask_logs() -> None:
    """nanobot's own log, without secrets: it has each tool call with its parameters, and stays beside the trail."""
    from loguru import logger

    redactor = Redactor()

    def mask(record: Any) -> None:
        record["message"] = redactor.string(record["message"], Found())

    logger.configure(patcher=mask)


def main(recorder: Recorder | Relay, arguments: Sequence[str], rules: Rules | None = None, watch: Watch | None = None) -> None:
    """nanobot's command line with the hook in it. Raises ConfigurationError for a command whose agent would run in another process."""
    if why := elsewhere(arguments):
        raise ConfigurationError(f"nanobot {' '.join(arguments)}: {why}, where nothing would be on record; expected agent -m TEXT, agent --classic, gateway or serve")
    audit = Audit(recorder, rules, watch)
    install(audit)
    mask_logs()
    _stay()
    if isinstance(recorder, Recorder):
        recorder.health = lambda: {"component": "nanobot", "runs": audit.runs}
    from nanobot.cli.entry import main as nanobot_main  # type: ignore[import-not-found,import-untyped,unused-ignore]

    sys.argv = ["nanobot", *arguments]
    nanobot_main()


def elsewhere(arguments: Sequence[str]) -> str | None:
    """Why the agent of this command would run in another process; None: it runs in this one, or there is no agent."""
    words = [a for a in arguments if not a.startswith("-")]
    options = {a.split("=", 1)[0] for a in arguments if a.startswith("-")}
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "agent"
    if options & {"--help", "-h", "--version", "-v"}:
        return None
    if command == "agent":
        here = options & {"-m", "--message", "--classic", "--no-tui"} or any(o.startswith("-m") and not o.startswith("--") for o in options)
        return None if here else "the terminal client starts a gateway of its own"
    if command == "webui":
        return "it starts a gateway of its own"
    if command == "gateway" and ("--background" in options or {"restart", "install-service"} & set(words)):
        return "a gateway in the background is a process of its own"
    return None


def _request() -> Any:
    try:
        from nanobot.agent.tools.context import current_request_context  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return current_request_context()


def _last_user(messages: Sequence[dict[str, Any]]) -> str:
    return next((hooks.text(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")


def _system(messages: Sequence[dict[str, Any]]) -> str:
    return next((hooks.text(m.get("content")) for m in messages if m.get("role") == "system"), "")


def _params(params: Any) -> dict[str, Any]:
    return params if isinstance(params, dict) else {} if params is None else {"arguments": params}


def _usage(usage: Any) -> dict[str, Any]:
    names = {"input": "input_tokens", "output": "output_tokens", "cache_read": "cache_read_tokens", "cache_write": "cache_write_tokens"}
    return {ours: getattr(usage, theirs, None) for ours, theirs in names.items()}


def _since(began: int) -> int:
    return (time.perf_counter_ns() - began) // 1000


def _exit_code(text: str) -> int:
    """nanobot's `exec` says it in its last line, and calls every exit code a success."""
    last = text.rstrip().rpartition("\n")[2]
    code = last.removeprefix("Exit code: ")
    return int(code) if code != last and code.lstrip("-").isdigit() else 0
