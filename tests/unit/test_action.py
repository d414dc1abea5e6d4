"""An action on record: the attempt before it runs, the outcome after, whatever becomes of it."""

import asyncio
import functools
import threading

import pytest

from clawtrail import context
from clawtrail.errors import EventError, QueueFull
from support import eventually, secrets


def events(receiver, n):
    """The first n events that are not the recorder's own."""

    def found():
        return [e for e in receiver.events() if not e["kind"].startswith("system.")]

    eventually(lambda: len(found()) >= n, state=found)
    return found()


def joined(receiver, n=2):
    """Attempts and outcomes, paired by `caused_by`."""
    found = events(receiver, n)
    attempts = {e["id"]: e for e in found if e["outcome"] == "attempt"}
    pairs = [(attempts[e["caused_by"]], e) for e in found if e["outcome"] != "attempt"]
    assert len(attempts) == len(pairs) == n // 2
    return pairs


@pytest.fixture
def full(make_recorder, receiver, tmp_path):
    """A recorder without any room."""
    receiver.kill()

    def make(**options):
        recorder = make_recorder(receiver.address, spool=tmp_path, quota=1 << 20, **{"full_timeout": 0.01, "when_full": "block"} | options)
        patience, recorder.full_timeout = recorder.full_timeout, 0.01
        for size in (2000, 1):  # and then not even for a small one
            with pytest.raises(QueueFull):
                for _ in range(2000):
                    recorder.record("log.record", "unknown", content={"excerpt": "x" * size})
        recorder.full_timeout = patience
        return recorder

    return make


# -- with ------------------------------------------------------------------------------------------------------------


def test_the_attempt_is_on_record_before_the_action_and_its_outcome_after(recorder, receiver):
    with context(session="s1", run="r1"), recorder.action("exec", params={"command": "id"}, target={"type": "host", "id": "h"}) as act:
        assert recorder.stats()["accepted"] == 2 and act.attempt.seq == 2
        act.result("uid=0")
    ((attempt, outcome),) = joined(receiver)
    assert (attempt["kind"], attempt["outcome"], attempt["tool"], attempt["params"]) == ("tool.call", "attempt", {"name": "exec"}, {"command": "id"})
    assert (outcome["kind"], outcome["outcome"], outcome["tool"], outcome["target"]) == ("tool.result", "success", {"name": "exec"}, {"type": "host", "id": "h"})
    assert outcome["content"]["excerpt"] == "uid=0" and outcome["content"]["size"] == 5 and 0 <= outcome["duration_us"] < 60_000_000
    assert "params" not in outcome and "error" not in outcome and attempt["session"] == outcome["session"] == "s1" and outcome["run"] == "r1"


ENDS = [
    (ValueError("wrong"), "failure"),
    (TimeoutError("late"), "failure"),
    (PermissionError(13, "denied"), "denied"),
    (KeyboardInterrupt(), "unknown"),
    (SystemExit(0), "unknown"),
    (asyncio.CancelledError(), "unknown"),
    (GeneratorExit(), "unknown"),
]


@pytest.mark.parametrize("way", ["with", "async with", "function", "coroutine function"])
@pytest.mark.parametrize(("error", "outcome"), ENDS, ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else v)
def test_an_exception_is_the_outcome_and_goes_on_unchanged(error, outcome, way, recorder, receiver):
    async def in_block():
        async with recorder.action("exec"):
            raise error

    @recorder.action("exec")
    def function():
        raise error

    @recorder.action("exec")
    async def coroutine():
        raise error

    def block():
        with recorder.action("exec"):
            raise error

    with pytest.raises(type(error)) as raised:
        if way in ("with", "function"):
            (block if way == "with" else function)()
        else:
            run_one_step((in_block if way == "async with" else coroutine)())
    assert raised.value is error
    ((_, e),) = joined(receiver)
    assert (e["outcome"], e["error"]["type"], e["error"]["message"]) == (outcome, type(error).__name__, str(error))


def run_one_step(coroutine):
    """As an event loop does, but leaves every exception as it is."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as e:
            return e.value


def test_an_action_may_be_denied_by_its_own_policy(recorder, receiver):
    with recorder.action("exec") as act:
        act.deny("not on the list")
    with pytest.raises(RuntimeError), recorder.action("exec") as act:
        act.deny("not on the list")
        raise RuntimeError("stopped")
    (_, first), (_, second) = joined(receiver, 4)
    assert (first["outcome"], first["error"]) == ("denied", {"type": "denied", "message": "not on the list"})
    assert (second["outcome"], second["error"]) == ("denied", {"type": "RuntimeError", "message": "not on the list"})


@pytest.mark.odd_events("a policy.decision without its policy")
@pytest.mark.parametrize(
    ("kind", "result", "kinds", "group"),
    [
        ("model.request", None, ("model.request", "model.decision"), {"model": {"requested": "it"}}),
        ("credential.access", None, ("credential.access", "credential.access"), {"credential": {"name": "it"}}),
        ("run.start", None, ("run.start", "run.end"), {"tool": {"name": "it"}}),
        ("tool.call", "policy.decision", ("tool.call", "policy.decision"), {"tool": {"name": "it"}}),
        ("message.out", "message.in", ("message.out", "message.in"), {"tool": {"name": "it"}}),
    ],
)
def test_other_pairs_of_kinds_are_actions_too(kind, result, kinds, group, recorder, receiver):
    with recorder.action("it", kind=kind, **{"result": result} if result else {}):
        pass
    ((attempt, outcome),) = joined(receiver)
    assert (attempt["kind"], outcome["kind"]) == kinds and group.items() <= attempt.items() and group.items() <= outcome.items()


def test_a_group_of_the_name_may_say_more(recorder, receiver):
    with recorder.action("exec", tool={"type": "builtin"}):
        pass
    assert [e["tool"] for e in joined(receiver)[0]] == [{"name": "exec", "type": "builtin"}] * 2


@pytest.mark.parametrize("wrong", [{"kind": "tool.cal"}, {"result": "tool.resul"}, {"sesion": "s"}, {"credential": {"name": "a", "value": "x"}}], ids=str)
def test_an_action_that_no_event_can_tell_is_refused_where_it_is_written(wrong, recorder):
    with pytest.raises(EventError):
        recorder.action("exec", **wrong)
    assert recorder.stats()["accepted"] == 0


def test_an_action_is_entered_once_at_a_time_and_again_after_it_ended(recorder, receiver):
    act = recorder.action("exec")
    for _ in range(2):
        with act, pytest.raises(RuntimeError, match="under way; expected one recorder.action"), act:
            pass
    assert [o["outcome"] for _, o in joined(receiver, 4)] == ["success"] * 2


def test_a_secret_in_parameters_result_or_error_is_out(recorder, receiver):
    secret = secrets()["anthropic"]
    with pytest.raises(ValueError), recorder.action("exec", params={"header": secret}) as act:
        act.result({"body": "x" * 3000 + secret})
        raise ValueError(secret)
    ((attempt, outcome),) = joined(receiver)
    assert secret.encode() not in b"".join(receiver.raw) and "[redacted:anthropic" in attempt["params"]["header"] and "[redacted:" in outcome["error"]["message"]
    assert outcome["content"]["classes"] == "anthropic" and outcome["content"]["size"] == 3011 + len(secret)


# -- as decorator ----------------------------------------------------------------------------------------------------


def test_a_functions_arguments_are_the_parameters_by_name_and_each_call_is_an_action(recorder, receiver):
    @recorder.action(session="s1")
    def delete(path, *more, force=False, **options):
        """Deletes."""
        return path

    assert (delete("a"), delete("b", "c", force=True, deep=1)) == ("a", "b")
    assert delete.__name__ == "delete" and delete.__doc__ == "Deletes."
    first, second = joined(receiver, 4)
    assert first[0]["tool"]["name"].endswith("<locals>.delete") and first[0]["params"] == {"path": "a", "more": [], "force": False, "options": {}}
    assert second[0]["params"] == {"path": "b", "more": ["c"], "force": True, "options": {"deep": 1}} and second[1]["session"] == "s1"
    assert "content" not in first[1]


def test_a_method_leaves_itself_out_of_its_parameters(recorder, receiver):
    class Tools:
        @recorder.action()
        def method(self, n):
            return n

        @classmethod
        @recorder.action()
        def of_class(cls, n):
            return n

        @staticmethod
        @recorder.action()
        def static(n, self=7):
            return n

    tools = Tools()
    assert (tools.method(1), Tools.of_class(2), tools.static(3)) == (1, 2, 3)
    pairs = joined(receiver, 6)
    assert [a["params"] for a, _ in pairs] == [{"n": 1}, {"n": 2}, {"n": 3, "self": 7}]
    assert pairs[0][0]["tool"]["name"].endswith("Tools.method")


def test_calls_inside_of_calls_and_beside_each_other_are_kept_apart(recorder, receiver):
    @recorder.action("count")
    def count(n):
        return count(n - 1) + 1 if n else 0

    @recorder.action("sleep")
    async def sleep(n):
        await asyncio.sleep(0.001 * (10 - n))
        return n

    async def all_at_once():
        return await asyncio.gather(*(sleep(n) for n in range(10)))

    assert count(3) == 3 and asyncio.run(all_at_once()) == list(range(10))
    threads = [threading.Thread(target=count, args=(0,)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    pairs = joined(receiver, 2 * (4 + 10 + 8))
    assert all(a["tool"] == o["tool"] for a, o in pairs) and sorted(a["params"]["n"] for a, _ in pairs if a["tool"]["name"] == "sleep") == list(range(10))


def test_what_a_function_returns_is_kept_on_request(recorder, receiver):
    class Odd(dict):
        def items(self):
            raise RuntimeError("no")

    @recorder.action("f", keep_result=True)
    def f(value):
        return value

    odd = Odd(a=1)
    assert f({"a": [1]}) == {"a": [1]} and f("text") == "text" and f(None) is None and f("odd") == "odd"

    @recorder.action("g", keep_result=True, params={})
    def g():
        return odd

    assert g() is odd
    assert [o.get("content", {}).get("excerpt") for _, o in joined(receiver, 10)] == ['{"a":[1]}', "text", None, "odd", None]


def test_a_call_with_wrong_arguments_is_an_action_that_failed(recorder, receiver):
    @recorder.action("f")
    def f(a):
        raise AssertionError("ran")

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        f()
    ((attempt, outcome),) = joined(receiver)
    assert attempt["params"] == {"args": [], "kwargs": {}} and (outcome["outcome"], outcome["error"]["type"]) == ("failure", "TypeError")


def test_a_builtin_and_a_partial_are_functions_too(recorder, receiver):
    assert recorder.action()(max)(1, 2) == 2
    assert recorder.action("pow")(functools.partial(pow, 2))(3) == 8
    (biggest, _), (power, _) = joined(receiver, 4)
    assert biggest["tool"] == {"name": "max"} and biggest["params"] == {"args": [1, 2], "kwargs": {}} and power["tool"] == {"name": "pow"}


class Callable_:
    async def __call__(self, n):
        return n


def test_an_object_that_is_called_and_awaited_ends_when_it_was_awaited(recorder, receiver):
    assert asyncio.run(recorder.action("c")(Callable_())(5)) == 5
    assert joined(receiver)[0][1]["outcome"] == "success"


def generator():
    yield 1


async def agenerator():
    yield 1


@pytest.mark.parametrize(("what", "words"), [(generator, "a generator"), (agenerator, "a generator"), (Callable_, "a class"), (5, "int"), (None, "NoneType")], ids=str)
def test_what_has_no_single_end_is_refused_where_it_is_written(what, words, recorder):
    with pytest.raises(TypeError, match=f"is {words}; expected def or async def"):
        recorder.action()(what)


def test_a_function_that_hands_over_unfinished_work_is_unknown(recorder, receiver):
    async def work():
        return 1

    @recorder.action("f")
    def f(made):
        return made

    assert asyncio.run(f(work())) == 1 and next(f(generator())) == 1
    for (_, outcome), what in zip(joined(receiver, 4), ("coroutine", "generator")):
        assert outcome["outcome"] == "unknown" and outcome["error"]["message"] == f"it returned a {what}, whose end nobody waited for"


# -- no record, no action ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["block", "fail"])
@pytest.mark.parametrize("way", ["with", "async with", "function", "coroutine function"])
def test_what_cannot_be_recorded_does_not_run(way, policy, full):
    recorder, ran = full(when_full=policy), []

    @recorder.action()
    def function():
        ran.append(1)

    @recorder.action()
    async def coroutine():
        ran.append(1)

    async def in_block():
        async with recorder.action("x"):
            ran.append(1)

    with pytest.raises(QueueFull):
        if way == "with":
            with recorder.action("x"):
                ran.append(1)
        elif way == "function":
            function()
        else:
            asyncio.run((coroutine if way == "coroutine function" else in_block)())
    assert not ran


@pytest.mark.parametrize("way", ["function", "coroutine function"])
@pytest.mark.parametrize("error", [None, ValueError("mine")], ids=str)
def test_an_outcome_that_is_not_accepted_hides_neither_result_nor_exception(error, way, recorder, caplog):
    def function():
        recorder.close()  # from here on nothing is accepted
        if error:
            raise error
        return "mine"

    async def coroutine():
        return function()

    call = recorder.action("f")(function if way == "function" else coroutine)
    try:
        assert (call() if way == "function" else asyncio.run(call())) == "mine" and error is None
    except ValueError as e:
        assert e is error
    assert recorder.stats()["refused"] == {"closed": 1} and "the outcome of f is not on record" in caplog.text


@pytest.mark.parametrize("error", [None, ValueError("mine")], ids=str)
def test_with_fail_it_raises(error, make_recorder, receiver):
    recorder = make_recorder(receiver.address, when_full="fail")

    @recorder.action()
    def f():
        recorder.close()
        if error:
            raise error

    with pytest.raises(QueueFull) as raised:
        f()
    assert raised.value.__context__ is error


def test_an_interrupt_is_never_replaced(make_recorder, receiver):
    recorder = make_recorder(receiver.address, when_full="fail")
    with pytest.raises(KeyboardInterrupt), recorder.action("x"):
        recorder.close()
        raise KeyboardInterrupt


def test_a_task_that_is_cancelled_leaves_an_unknown_outcome(recorder, receiver):
    @recorder.action("wait")
    async def wait():
        await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(wait())
        while not recorder.stats()["accepted"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    ((_, outcome),) = joined(receiver)
    assert (outcome["outcome"], outcome["error"]["type"]) == ("unknown", "CancelledError")


def test_a_timeout_of_asyncio_is_an_interruption_of_what_it_cancels(recorder, receiver):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with recorder.action("inner"):
                    await asyncio.sleep(60)

    asyncio.run(main())
    assert joined(receiver)[0][1]["outcome"] == "unknown"


def test_the_attempt_waits_for_room_without_holding_up_the_loop(full, receiver):
    recorder, turns = full(full_timeout=20.0), []

    async def main():
        waiting = asyncio.create_task(act())
        for _ in range(20):
            turns.append(1)
            await asyncio.sleep(0.005)
        receiver.start()
        await waiting

    async def act():
        async with recorder.action("x"):
            turns.append("ran")

    asyncio.run(main())
    assert turns == [1] * 20 + ["ran"]
