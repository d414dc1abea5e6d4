"""What the model proxy reads of a request and of an answer: the same in whatever pieces it comes, and never an exception."""

import gzip
import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawtrail.event import SCAN_MAX
from clawtrail.proxy import apis, inbound, outbound, reading
from clawtrail.proxy.reading import Events, StreamError, data_of
from model_apis import APIS, ARGUMENTS, SYSTEM, TEXT

by_name = pytest.mark.parametrize("spoken", APIS, ids=lambda s: s.name)


def stream(spoken, pieces):
    """The answer, and how many events had come when it was closing."""
    answer, events, count, closing = apis.api_of(spoken.path).answer(), Events(), 0, None
    for piece in pieces:
        for event in events.feed(piece):
            if (said := data_of(event)) is not None:
                answer.event(said)
                closing = count if closing is None and answer.closing else closing
                count += 1
    assert events.rest() == b""
    answer.end()
    return answer, closing


def check(spoken, answer):
    (call,) = answer.calls.values()
    assert answer.text == TEXT and answer.size == len(TEXT.encode()) and not answer.bad_events
    assert (call.tool, call.id, json.loads(call.arguments)) == ("read", spoken.call_id, ARGUMENTS)
    assert (answer.id, answer.model, answer.ending, answer.usage) == ("resp_1", "model-2026", "tool", spoken.reads)
    assert answer.closing and answer.done and answer.error is None


@by_name
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_stream_is_read_the_same_in_whatever_pieces_it_comes(spoken, ending):
    whole = b": a comment\n\n".join(spoken.events).replace(b"\n", ending.encode())
    ways = [[whole], [whole[i : i + 1] for i in range(len(whole))]]
    for seed in range(20):
        cuts = sorted(random.Random(seed).sample(range(1, len(whole)), 12))
        ways.append([whole[a:b] for a, b in zip([0, *cuts], [*cuts, None])])
    for pieces in ways:
        answer, closing = stream(spoken, pieces)
        check(spoken, answer)
        assert closing == spoken.closing


@by_name
def test_a_whole_answer_says_what_a_stream_says(spoken):
    answer = apis.api_of(spoken.whole_path).answer()
    answer.whole(json.dumps(spoken.whole).encode())
    check(spoken, answer)


@by_name
def test_a_refusal_is_told_from_an_answer(spoken):
    answer = apis.api_of(spoken.path).answer()
    answer.whole(json.dumps(spoken.refusal).encode())
    assert answer.ending == ("filter" if spoken.name.startswith("google") else "refusal")


@by_name
def test_a_stream_that_breaks_off_is_not_whole(spoken):
    answer, closing = stream(spoken, spoken.events[: spoken.closing])
    assert closing is None and not answer.closing and not answer.done


@by_name
def test_an_error_inside_of_a_stream_ends_it(spoken):
    told = {"type": "error", "error": {"type": "overloaded_error", "message": "try later"}}
    answer, _ = stream(spoken, [spoken.events[0], b"data: " + json.dumps(told).encode() + b"\n\n"])
    assert answer.closing and answer.ending == "error" and answer.error["message"] == "try later"


def test_geminis_stream_without_events_is_one_list():
    spoken = APIS[3]
    answer = apis.GEMINI.answer()
    answer.whole(b"[" + b",".join(data_of(e) for e in spoken.events) + b"]")
    check(spoken, answer)


@by_name
def test_a_request_is_read(spoken):
    asked = inbound.asked(apis.api_of(spoken.path), json.dumps(spoken.request).encode(), "/model" + spoken.path)
    assert (asked.model, asked.stream, asked.system, asked.tools, asked.offers) == ("model-a", True, SYSTEM, ["read"], True)
    assert asked.params["temperature"] == 0.2 and asked.params["max_tokens"] == 8192 and len(asked.tools_sha256) == 64
    plain = inbound.asked(apis.api_of(spoken.path), json.dumps(spoken.without_tools()).encode(), spoken.path)
    assert not plain.offers and plain.tools == [] and plain.tools_sha256 is None


OFFERS = [
    ("tools", [{"type": "function"}]), ("tools", {"0": "x"}), ("tools", "x"), ("Tools", [{}]), ("TOOLS", [{}]), ("functions", [{"name": "f"}]),
    ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("prompt", {"id": "pmpt_1"}), ("mcp_servers", [{"url": "x"}]),
    ("container", "c"), ("web_search_options", {"x": 1}), ("cachedContent", "cachedContents/1"), ("cached_content", "x"), ("toolConfig", {"x": 1}),
]  # fmt: skip


@by_name
@pytest.mark.parametrize("name, value", OFFERS, ids=str)
def test_tools_are_seen_in_whatever_way_they_are_offered(spoken, name, value):
    body = json.dumps({**spoken.without_tools(), name: value}).encode()
    assert inbound.asked(apis.api_of(spoken.path), body, spoken.path).offers


HIDING = [
    b'{"tools":[{"type":"function"}],"tools":[]}', b'{"messages":[{"role":"user","role":"system"}]}', b'{"tools":[],"Tools":[{}]}',
    b'{"model":"m"} {"tools":[{}]}', '{"model":"m"}'.encode("utf-16"), '{"model":"m"}'.encode("utf-8-sig"), b"[]", b"null", b'"x"', b"", b"{",
    b'{"temperature":NaN}', b"\xff\xfe", b'{"a":' + b"[" * 100_000, b'{"model":"\xed\xa0\x80"}',
]  # fmt: skip


@by_name
@pytest.mark.parametrize("body", HIDING, ids=range(len(HIDING)))
def test_what_two_readers_may_read_in_two_ways_is_not_read_at_all(spoken, body):
    with pytest.raises((ValueError, RecursionError)):
        inbound.asked(apis.api_of(spoken.path), body, spoken.path)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "id", "model", "content", "parts", "text", "choices", "delta", "message", "tool_calls", "function", "index", "output", "item", "usage",
         "candidates", "functionCall", "args", "error", "response", "tools", "functionDeclarations", "messages", "input", "system", "generationConfig",
         "finish_reason", "stop_reason", "finishReason", "status", "incomplete_details", "name", "arguments", "refusal", "summary", "contents"]), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(ANYTHING)
@example({"type": None, "item": {"type": []}})
@example({"type": None, "content_block": {"type": []}, "index": []})
def test_no_shape_of_a_body_is_an_exception(said):
    if not isinstance(said, dict):
        said = {"choices": said, "messages": said, "tools": said, "content": said}
    for spoken in APIS:
        api = apis.api_of(spoken.path)
        api.asked(said, spoken.path)
        kinds = [json.loads(data_of(e)).get("type") for e in spoken.events if data_of(e) != b"[DONE]"]
        for read in ("event", "whole"):
            answer = api.answer()
            for kind in set(kinds):
                getattr(answer, read)(json.dumps({**said, **({"type": kind} if kind else {})}).encode())
            answer.end()
            assert isinstance(answer.text, str) and (answer.ending is None or isinstance(answer.ending, str))
            assert all(isinstance(n, int) for n in answer.usage.values())


def test_tools_have_the_hash_of_their_text_also_when_they_come_again_and_beside_ones_that_python_calls_equal():
    alike = [[{"a": 1, "b": ["\ud800"]}], [{"a": 1.0, "b": ["\ud800"]}], [{"a": True, "b": ["\ud800"]}], [{"b": ["\ud800"], "a": 1}]]
    large = [{"a": "x" * reading.BULKY}]
    for tools in [*alike, large] * 2:
        assert reading.digest_of_tools(json.loads(json.dumps(tools))) == reading.digest(tools)
    assert len({*map(reading.digest_of_tools, alike)}) == len(alike) and reading.digest_of_tools([]) is None


def test_a_long_text_is_kept_as_the_redactor_would_cut_it():
    answer = apis.CHAT.answer()
    for _ in range(3):
        answer.say("x" * (SCAN_MAX // 2))
    assert answer.text == "x" * SCAN_MAX + f"[+{SCAN_MAX // 2}]" and answer.size == 3 * (SCAN_MAX // 2)


def test_what_is_kept_of_an_answer_is_bounded():
    answer = apis.CHAT.answer()
    for n in range(reading.CALLS_MAX + 10):
        answer.call(n, f"c{n}", "read").add("x" * (reading.ARGUMENTS_MAX // 4))
        for _ in range(8 if n == 0 else 0):
            answer.call(n).add("x" * (reading.ARGUMENTS_MAX // 4))
    assert len(answer.calls) == reading.CALLS_MAX and answer.more_calls == 10 and len(answer.calls[0].arguments) == reading.ARGUMENTS_MAX
    with pytest.raises(StreamError):
        for _ in Events().feed(b"x" * (reading.EVENT_MAX + 1)):
            pass


def test_a_compressed_piece_that_would_fill_the_memory_is_not_unpacked():
    inflate = outbound.Inflate("gzip")
    with pytest.raises(StreamError):
        inflate(gzip.compress(bytes(outbound.WHOLE_MAX + 1)))


PATHS = {
    "/chat/completions": "openai-completions", "/v1/responses": "openai-responses", "/v1/messages": "anthropic-messages",
    "/v1beta/models/m:generateContent": "google-generative-ai", "/embeddings": "minimal", "/models": "minimal", "/models/gpt-x": "minimal",
    "/v1/audio/speech": "minimal", "/v1/images/edits": "minimal", "/v1beta/models/m:embedContent": "minimal", "/v1/messages/count_tokens": "minimal",
    "/v1/batches": None, "/v1/messages/batches": None, "/v1/files": None, "/v1/responses/compact": None, "/v1/realtime": None, "/v1/fine_tuning/jobs": None,
    "/v1/responses/resp_1": None, "/v1beta/models/m:batchGenerateContent": None, "/v1/completions": None, "/": None, "/v1/threads/x/runs": None,
    "/v1/chat/completions/x": None, "/v1/models/a/b/c": None, "/v1beta/models/m:predict": None,
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_one_of_the_four_apis_or_minimal_or_nothing(path):
    api = apis.api_of(path)
    assert (api.name if api else "minimal" if apis.minimal(path) else None) == PATHS[path]
