"""The watermark: what is believed of a store that says how far it has our events, and what is not."""

import json
import os
import shutil
import socket
import ssl
import struct
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clawtrail.errors import ConfigurationError, TransportError
from clawtrail.proof import HTTPSWatermark, Watermark
from clawtrail.transport import TLS, TLSFiles
from support import eventually

EPOCHS = [str(uuid.UUID(int=n)) for n in range(1, 4)]
ONE = EPOCHS[0]


class Server(ThreadingHTTPServer):
    """A watermark server as the docstring of HTTPSWatermark describes it, and misbehaving on request.

    `known`: client's name → epoch → n. `body`, `status`, `headers` replace parts of the answer; `raw` is written instead of it.
    So many questions get no answer but an end: `drop`.
    """

    daemon_threads = True

    def __init__(self, pki):
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*pki.server)
        self.context.load_verify_locations(pki.client_ca)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.known, self.questions, self.clients, self.connections, self.drop = {}, [], [], [], 0
        self.body, self.status, self.headers, self.raw, self.then = None, 200, {}, None, lambda sock: None
        self.url = f"https://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def finish_request(self, request, address):
        request.settimeout(5)
        tls = self.context.wrap_socket(request, server_side=True)
        self.connections.append(tls)
        try:
            Handler(tls, address, self)
        finally:
            tls.close()

    def handle_error(self, request, address):
        pass

    def stop(self):
        self.hang_up()
        self.shutdown()
        self.server_close()
        self._thread.join(5)

    def hang_up(self):
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        client = dict(pair[0] for pair in self.connection.getpeercert()["subject"])["commonName"]
        split = urllib.parse.urlsplit(self.path)
        asked = urllib.parse.parse_qs(split.query)["epoch"]
        server.questions.append((split.path, asked))
        server.clients.append(client)
        if server.drop:
            server.drop -= 1
            self.close_connection = True
            return
        known = server.known.get(client, {})
        body = json.dumps({"v": 1, "stored": {e: known[e] for e in asked if e in known}}).encode()
        if server.raw is not None:
            self.wfile.write(server.raw)
            server.then(self.connection)
            self.close_connection = True
            return
        body = body if server.body is None else server.body
        self.send_response(server.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **server.headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(pki):
    made = Server(pki)
    made.known = {"agent-1": {EPOCHS[0]: 7, EPOCHS[1]: 0}}
    yield made
    made.stop()


@pytest.fixture
def ask(server, pki):
    made = []

    def make(url=None, tls=None, timeout=2.0):
        made.append(HTTPSWatermark(url or server.url, tls or TLS(pki.client), timeout))
        return made[-1]

    yield make
    for watermark in made:
        watermark.close()


def test_what_is_stored_is_told_and_an_unknown_epoch_is_absent(ask, server):
    watermark: Watermark = ask()
    assert watermark.stored(EPOCHS) == {EPOCHS[0]: 7, EPOCHS[1]: 0}
    assert server.questions == [("/v1/watermark", EPOCHS)] and server.clients == ["agent-1"]


def test_no_epoch_is_no_question(ask, server):
    assert ask().stored([]) == {} and server.connections == []


def test_one_connection_serves_many_questions(ask, server):
    watermark = ask()
    for n in range(5):
        server.known["agent-1"][ONE] = n
        assert watermark.stored([ONE]) == {ONE: n}
    assert len(server.connections) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ended_between_two_questions_is_replaced(reset, ask, server):
    watermark = ask()
    for _ in range(3):
        assert watermark.stored([ONE]) == {ONE: 7}
        last = server.connections[-1]
        if reset:
            last.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        last.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)  # its handler ends, and closes it
        eventually(lambda: last.fileno() == -1)
    assert len(server.connections) == 3


def test_a_kept_connection_that_ends_while_it_is_asked_is_replaced_and_a_fresh_one_is_not(ask, server):
    watermark = ask()
    assert watermark.stored([ONE]) == {ONE: 7}
    server.drop = 1
    assert watermark.stored([ONE]) == {ONE: 7} and len(server.connections) == 2
    server.drop = 3
    with pytest.raises(TransportError, match="cut the connection|closed|reset"):
        watermark.stored([ONE])
    assert server.drop == 1


def test_an_answer_that_ends_the_connection_is_followed_by_another_connection(ask, server):
    server.headers = {"Connection": "close"}
    watermark = ask()
    assert [watermark.stored([ONE]) for _ in range(2)] == [{ONE: 7}] * 2
    assert len(server.connections) == 2


def test_hundreds_of_epochs_are_asked_in_requests_of_a_hundred(ask, server):
    many = [str(uuid.uuid4()) for _ in range(250)]
    server.known["agent-1"] = {epoch: n for n, epoch in enumerate(many)}
    assert ask().stored(many) == server.known["agent-1"]
    assert [len(asked) for _, asked in server.questions] == [100, 100, 50]


def test_a_path_in_the_url_comes_before_the_protocols(ask, server):
    assert ask(server.url + "/audit/").stored([ONE]) == {ONE: 7}
    assert server.questions[0][0] == "/audit/v1/watermark"


# -- what is not believed -----------------------------------------------------------------------------------------


def answer(n, epoch=ONE):
    return f'{{"v":1,"stored":{{"{epoch}":{n}}}}}'.encode()


@pytest.mark.parametrize(
    ("body", "found", "expected"),
    [
        (answer("true"), "True", "an integer from 0"),
        (answer("7.0"), "7.0", "an integer from 0"),
        (answer("1e3"), "1000.0", "an integer from 0"),
        (answer("-1"), "-1", "an integer from 0"),
        (answer('"7"'), "'7'", "an integer from 0"),
        (answer("null"), "None", "an integer from 0"),
        (answer("NaN"), "nan", "an integer from 0"),
        (answer(2**53), str(2**53), f"an integer from 0 to {2**53 - 1}"),
        (answer("9" * 5000), "999", "JSON"),
        (answer(7, EPOCHS[2]), EPOCHS[2], "only epochs that were asked for"),
        (answer(7, ""), "''", "only epochs that were asked for"),
        (f'{{"v":1,"stored":{{"{ONE}":7,"{ONE}":9}}}}'.encode(), "a member twice", "without repeated members"),
        (b'{"v":1,"v":1,"stored":{}}', "a member twice", "without repeated members"),
        (b'{"v":2,"stored":{}}', '"v": 2', "the integer 1"),
        (b'{"v":true,"stored":{}}', '"v": True', "the integer 1"),
        (b'{"v":1.0,"stored":{}}', '"v": 1.0', "the integer 1"),
        (b'{"v":"1","stored":{}}', "\"v\": '1'", "the integer 1"),
        (b'{"stored":{}}', "{'stored': {}}", 'the members "v" and "stored"'),
        (b'{"v":1}', "{'v': 1}", 'the members "v" and "stored"'),
        (b'{"v":1,"stored":{},"more":0}', "'more'", '"stored" alone'),
        (b'{"v":1,"stored":[]}', '"stored": []', "an object"),
        (b'{"v":1,"stored":null}', '"stored": None', "an object"),
        (b"[]", "[]", "an object"),
        (b"", "b''", "JSON"),
        (b"<html>", "<html>", "JSON"),
        (b"\xff\xfe", "xff", "JSON"),
        (b'{"v":1,"stored":{}} x', "Extra data", "JSON"),
        (b"[" * 60000, "[[[", "JSON"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_of_the_protocol_proves_nothing_and_is_shown(body, found, expected, ask, server):
    server.body = body
    with pytest.raises(TransportError) as caught:
        ask().stored([ONE])
    said = str(caught.value)
    assert found in said and "; expected " in said and expected in said.partition("; expected ")[2] and server.url[8:] in said and len(said) < 700


def test_an_answer_to_another_client_is_not_ours(ask, server, pki):
    server.known = {"somebody-else": {ONE: 7}}
    assert ask().stored([ONE]) == {}


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 308, 400, 403, 404, 500, 503])
def test_only_200_is_an_answer_and_no_redirect_is_followed(status, ask, server):
    server.status, server.headers = status, {"Location": server.url + "/elsewhere"}
    server.body = b"" if status == 204 else b"sorry"
    with pytest.raises(TransportError, match=f"answered {status} .*expected 200"):
        ask().stored([ONE])
    assert len(server.questions) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n" + b" " * 100000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 100000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 30000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + b" " * 100000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Header: %s\r\n" % (b"x" * 1000) * 90,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
    ],
    ids=["length", "giant length", "no length", "chunks", "giant chunk", "header", "continue"],
)
def test_an_answer_of_more_than_64_kib_is_not_read(raw, ask, server):
    server.raw = raw
    with pytest.raises(TransportError, match="with more than 65536 bytes; expected no more"):
        ask().stored([ONE])


@pytest.mark.parametrize(
    "raw",
    [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n"],
    ids=["nothing", "no HTTP", "cut", "bad chunk", "header only"],
)  # fmt: skip
def test_what_is_no_whole_answer_is_an_error(raw, ask, server):
    server.raw = raw
    with pytest.raises(TransportError, match="127.0.0.1:"):
        ask().stored([ONE])


def test_what_a_server_says_unasked_is_no_answer_to_the_next_question(ask, server):
    first, second = (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer(n)), answer(n)) for n in (7, 9))
    go, said = threading.Event(), threading.Event()

    def then(sock):
        assert go.wait(5)
        sock.sendall(second)
        said.set()
        time.sleep(0.5)

    server.raw, server.then = first, then
    watermark = ask()
    assert watermark.stored([ONE]) == {ONE: 7}
    server.raw = None
    go.set()
    assert said.wait(5) and watermark.stored([ONE]) == {ONE: 7}


# -- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["nothing", "header", "body"])
def test_a_server_that_answers_byte_by_byte_has_the_time_of_one_question(part, ask, server):
    def drip(sock):
        for _ in range(200):
            time.sleep(0.02)
            sock.sendall(b" ")

    server.raw = {"nothing": b"", "header": b"HTTP/1.1 200 OK\r\nX-Slow: ", "body": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"}[part]
    server.then = (lambda sock: time.sleep(3)) if part == "nothing" else drip
    began = time.monotonic()
    with pytest.raises(TransportError, match="did not answer in time"):
        ask(timeout=0.5).stored([ONE])
    assert 0.4 < time.monotonic() - began < 2


def test_a_server_that_does_not_finish_its_handshake_has_the_time_of_one_question(ask, plain_listener):
    began = time.monotonic()
    with pytest.raises(TransportError, match="did not finish the TLS handshake in time"):
        ask("https://{}:{}".format(*plain_listener().address), timeout=0.5).stored([ONE])
    assert time.monotonic() - began < 2


def test_a_server_that_is_away_is_said_and_asked_again_when_it_is_back(ask, server, pki):
    watermark = ask()
    assert watermark.stored([ONE]) == {ONE: 7}
    address = server.server_address
    server.stop()
    with pytest.raises(TransportError, match="127.0.0.1:.*"):
        watermark.stored([ONE])
    listener = socket.create_server(address)  # the port is ours again
    server.socket, server._thread = listener, threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    server._thread.start()
    assert watermark.stored([ONE]) == {ONE: 7}


# -- whom is asked, and as whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:6516", "in clear"), ("HTTP://x:1", "in clear"), ("ftp://x:1", "in clear"), ("127.0.0.1:6516", "in clear"),
        ("", "in clear"), ("https://", "host"), ("https://logs.example", "expected https://host:port"), ("https://x:0", "expected https"),
        ("https://x:99999", "expected https"), ("https://x:y", "expected https"), ("https://user:word@x:1", "without user"),
        ("https://x:1/?a=b", "without user, query"), ("https://x:1/#a", "fragment"), ("https://x:1/a b", "without"), ("https://[::1", "expected https"),
        ("https://x:1/\r\nHost: y", "without"), ("https://a..b:1", "host"), ("https://x:1?", "without"), (None, "in clear"), (7, "expected https"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_https_or_none_at_all_is_refused_at_once(url, words, pki):
    with pytest.raises(ConfigurationError, match=words):
        HTTPSWatermark(url, TLS(pki.client))


def test_a_proxy_of_the_environment_is_not_followed(ask, server, monkeypatch, plain_listener):
    proxy = plain_listener()
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://{}:{}".format(*proxy.address))
    assert ask().stored([ONE]) == {ONE: 7} and proxy.connections == 0


def test_a_server_of_another_ca_or_name_is_not_asked(ask, server, pki):
    for tls in (TLS(TLSFiles(pki.foreign_ca, pki.client / "client.crt", pki.client / "client.key")), TLS(pki.client, "other.example")):
        with pytest.raises(TransportError, match="is not verified"):
            ask(tls=tls).stored([ONE])
    assert server.questions == []


def test_a_client_that_the_server_does_not_admit_is_told_why(ask, server, pki):
    for tls, words in ((TLS(TLSFiles(pki.ca)), "requires a client certificate"), (TLS(pki.stranger), "does not trust the CA of our")):
        with pytest.raises(TransportError, match=f"refused us: it {words}"):
            ask(tls=tls).stored([ONE])
    assert server.questions == []


def test_a_certificate_that_is_replaced_is_shown_from_the_next_question(ask, server, pki, tmp_path):
    folder = shutil.copytree(pki.client, tmp_path / "client")
    watermark = ask(tls=TLS(folder))
    assert watermark.stored([ONE]) == {ONE: 7}
    shutil.copy2(pki.stranger / "client.crt", folder / "client.crt")
    assert watermark.stored([ONE]) == {ONE: 7} and len(server.connections) == 1  # half of it is no reason to stop
    shutil.copy2(pki.stranger / "client.key", folder / "client.key")
    with pytest.raises(TransportError, match="does not trust the CA of our"):
        watermark.stored([ONE])


def test_a_forked_child_asks_over_a_connection_of_its_own(ask, server):
    watermark = ask()
    assert watermark.stored([ONE]) == {ONE: 7}
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(watermark.stored([ONE])[ONE])
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7 and len(server.connections) == 2
    assert watermark.stored([ONE]) == {ONE: 7} and len(server.connections) == 2  # the parent's was not touched
