"""An action that runs only on record: its attempt before, its outcome after, joined by `caused_by`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, Literal, NoReturn, TypeVar, cast

from . import event
from .errors import ConfigurationError, GateClosed, QueueFull, SpoolError
from .gates import LEVELS, Gates, refuse
from .redact import Found

if TYPE_CHECKING:
    from .recorder import Receipt, Recorder

log = logging.getLogger("clawtrail.action")
_F = TypeVar("_F", bound=Callable[..., Any])
_PAIRS = {
    "tool.call": "tool.result", "model.request": "model.decision", "run.start": "run.end", "session.start": "session.end",
    "subagent.start": "subagent.end", "approval.request": "approval.result",
}  # fmt: skip
_NAMED = {"credential": ("credential", "name"), "model": ("model", "requested")}  # where a name goes, by category; else tool.name
_OUTCOMES = (("success", type(None)), ("denied", PermissionError), ("failure", Exception), ("unknown", BaseException))


class Action:
    """A context manager (`with`, `async with`) and a decorator of functions (`def`, `async def`). Made by `Recorder.action`.

    Args:
        name: the tool; as decorator the function's qualified name unless given.
        kind, result: of the attempt and of the outcome; `result` follows from `kind` for the usual pairs.
        keep_result: as decorator, store size, hash and excerpt of what the function returns.
        gate: the level that the attempt must reach before the action runs, one of `gates.LEVELS`; the recorder's unless given.
        fields: groups of both events, but `params` and `content` of the attempt alone; as decorator, `params` are the
            arguments by name unless given.

    Entering raises QueueFull or SpoolError when the attempt is not accepted, and GateClosed when it has not come as far
    as the gate asks for; then the action does not run. Else `attempt` is its Receipt; None with the gate `off`, when it
    was not accepted. The outcome is `success`; `denied` after `deny()` or for PermissionError; `failure` for
    any other Exception; `unknown` when interrupted (cancellation, KeyboardInterrupt, SystemExit). The exception goes
    on unchanged. An outcome that is not accepted is counted and logged; it raises only with `when_full="fail"`.
    """

    def __init__(
        self, recorder: Recorder, name: str | None = None, *, kind: str = "tool.call", result: str = "tool.result",
        keep_result: bool = False, gate: str | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        self._gate = gate
        self._gates = recorder.gates if gate is None else Gates.parse(gate, recorder.gates.deadline, recorder.proof)
        self._recorder, self._name, self._kind, self._keep, self._fields = recorder, name, kind, keep_result, fields
        self._result = _PAIRS.get(kind, kind) if result == "tool.result" else result
        event.body(kind, "attempt", fields)  # a wrong kind or field shows where it is written, not at the first call
        event.body(self._result, "success", {})
        self.attempt: Receipt | None = None
        self._open, self._began, self._end = False, 0, ("", "")
        self._content: dict[str, Any] | None = None

    def deny(self, reason: str) -> None:
        """The action was not carried out: its outcome is `denied`."""
        self._end = ("denied", reason)

    def result(self, value: Any) -> None:
        """What came out of the action, for the outcome's `content`."""
        text = value if isinstance(value, str) else event.dumps(event.clean(value))
        redacted = self._recorder.redactor.string(text, found := Found())
        self._content = event.content(redacted, len(text.encode("utf-8", "replace")), **found.fields())

    def __enter__(self) -> Action:
        level, fields = self._level(), self._attempt()
        if LEVELS.index(level) > 1 and _in_event_loop():
            raise ConfigurationError(f"gate {level!r} in an event loop, which would stand still; expected `async with`")
        try:
            receipt = self._recorder.record(self._kind, "attempt", **fields)
        except (QueueFull, SpoolError) as e:
            return self._unaccepted(level, e)
        if LEVELS.index(level) > 1 and not self._recorder.wait_reached(receipt, level, self._gates.deadline):
            self._refused(level, receipt, fields)
        return self._entered(receipt)

    async def __aenter__(self) -> Action:
        level, fields = self._level(), self._attempt()
        try:
            receipt = await self._recorder.arecord(self._kind, "attempt", **fields)
        except (QueueFull, SpoolError) as e:
            return self._unaccepted(level, e)
        if LEVELS.index(level) > 1 and not await self._recorder.reached(receipt, level, self._gates.deadline):
            self._refused(level, receipt, fields)
        return self._entered(receipt)

    def _level(self) -> str:
        return self._gates.level([event.KINDS[self._kind]])

    def _unaccepted(self, level: str, error: Exception) -> Action:
        if level != "off":
            raise error
        log.error("%s runs without a record: %s", self._name or self._kind, error)
        return self._entered(None)

    def _refused(self, level: str, receipt: Receipt, fields: dict[str, Any]) -> NoReturn:
        why = refuse(self._recorder, self._gates, level, "", receipt.id, fields)
        kept = {k: v for k, v in fields.items() if k not in ("params", "content")}
        with self._unrecorded(GateClosed()):
            self._recorder.record(self._result, "denied", **kept, caused_by=receipt.id, error={"type": "GateClosed", "message": why})
        raise GateClosed(why)

    def __exit__(self, cls: object, error: BaseException | None, tb: object) -> Literal[False]:
        outcome, fields = self._outcome(error)
        with self._unrecorded(error):
            self._recorder.record(self._result, outcome, **fields)
        return False

    async def __aexit__(self, cls: object, error: BaseException | None, tb: object) -> Literal[False]:
        if error is not None and not isinstance(error, Exception):  # cancelled: what is awaited now may be cancelled too
            return self.__exit__(cls, error, tb)
        outcome, fields = self._outcome(error)
        with self._unrecorded(error):
            await self._recorder.arecord(self._result, outcome, **fields)
        return False

    def _attempt(self) -> dict[str, Any]:
        if self._open:
            raise RuntimeError("this action is under way; expected one recorder.action(…) for each attempt")
        group, member = _NAMED.get(event.KINDS[self._kind], ("tool", "name"))
        given = self._fields.get(group, {})
        return {**self._fields, group: {member: self._name, **given} if isinstance(given, dict) else given} if self._name else self._fields

    def _entered(self, receipt: Receipt | None) -> Action:
        self.attempt, self._open, self._end, self._content = receipt, True, ("", ""), None
        self._began = time.perf_counter_ns()
        return self

    def _outcome(self, error: BaseException | None) -> tuple[str, dict[str, Any]]:
        spent, self._open = time.perf_counter_ns() - self._began, False
        fields = {k: v for k, v in self._attempt().items() if k not in ("params", "content")}
        fields |= {"caused_by": self.attempt and self.attempt.id, "duration_us": spent // 1000, "content": self._content}
        outcome, reason = self._end
        outcome = outcome or next(o for o, kinds in _OUTCOMES if isinstance(error, kinds))
        if reason or error is not None:
            fields["error"] = {"type": outcome if error is None else type(error).__name__, "message": reason or event.written(error)}
        return outcome, fields

    @contextmanager
    def _unrecorded(self, error: BaseException | None) -> Iterator[None]:
        try:
            yield
        except Exception as refused:
            if self._recorder.when_full == "fail" and self._level() != "off" and (error is None or isinstance(error, Exception)):
                raise
            log.error("the outcome of %s is not on record: %s", self._name or self._kind, refused)

    def _returned(self, value: Any) -> Any:
        if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
            self._end = ("unknown", f"it returned a {type(value).__name__}, whose end nobody waited for")
        elif self._keep and value is not None:
            try:
                self.result(value)
            except Exception as e:  # a value that cannot be written: what the function returns is worth more
                log.error("the result of %s is not on record: %s", self._name, event.written(e))
        return value

    def __call__(self, fn: _F) -> _F:
        """The function, each of its calls an action of its own. Raises TypeError for generators and classes."""
        name = self._name or getattr(fn, "__qualname__", None) or type(fn).__qualname__
        generator = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)  # runs after its call has returned
        if generator or inspect.isclass(fn) or not callable(fn):
            what = "a generator" if generator else "a class" if inspect.isclass(fn) else type(fn).__name__
            raise TypeError(f"{name} is {what}; expected def or async def; for anything else, `with recorder.action(…)` around its use")
        try:
            signature = inspect.signature(fn)
        except ValueError:  # a builtin that does not tell
            signature = inspect.signature(lambda *args, **kwargs: None)

        def action(args: Any, kwargs: Any) -> Action:
            more = {"keep_result": self._keep, "gate": self._gate, "params": _params(signature, args, kwargs), **self._fields}
            return Action(self._recorder, name, kind=self._kind, result=self._result, **more)

        async def arun(*args: Any, **kwargs: Any) -> Any:
            async with action(args, kwargs) as act:
                return act._returned(await fn(*args, **kwargs))

        def run(*args: Any, **kwargs: Any) -> Any:
            with action(args, kwargs) as act:
                return act._returned(fn(*args, **kwargs))

        awaited = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        return cast(_F, functools.wraps(fn)(arun if awaited else run))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _params(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # the call will fail, and that is its outcome
        return {"args": args, "kwargs": kwargs}
    bound.apply_defaults()
    return {k: v for i, (k, v) in enumerate(bound.arguments.items()) if i or k not in ("self", "cls")}
