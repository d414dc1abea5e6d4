"""The receiver of the benchmarks, a process of its own: TLS 1.3 with session tickets, plain TCP, or HTTP.

It appends the number of every event that it READ to the file `seen`, by one write per read, so that a SIGKILL forgets
nothing it had read. With --raw it keeps every byte as well, one file per connection; with --stamps the moment at which
each event came. Frames are not looked at: whatever a peer sends counts, in its favour.

    python -m bench.sink --mode tls --folder FOLDER --certificates FOLDER [--port N] [--raw] [--stamps]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

TOKEN = re.compile(rb"SEQ(\d{9})")
WIDTH = 9  #: bytes of one number in `seen`
STAMP = struct.Struct("<QI")  #: CLOCK_MONOTONIC in nanoseconds, number
READ = 256 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Notes:
    """What one connection brought."""

    def __init__(self, options: argparse.Namespace) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._seen = os.open(options.folder / "seen", flags, 0o600)
        self._raw = os.open(options.folder / f"raw-{time.time_ns():020d}", flags, 0o600) if options.raw else None
        self._stamps = os.open(options.folder / "stamps", flags, 0o600) if options.stamps else None
        self._tail = b""

    def note(self, data: bytes) -> None:
        moment = time.monotonic_ns()
        if self._raw is not None:
            os.write(self._raw, data)
        data = self._tail + data
        self._tail = data[-11:]  # shorter than a token: what is split over two reads is found, nothing is found twice
        if found := TOKEN.findall(data):
            os.write(self._seen, b"".join(found))
            if self._stamps is not None:
                os.write(self._stamps, b"".join(STAMP.pack(moment, int(n)) for n in found))

    def close(self) -> None:
        for descriptor in (self._seen, self._raw, self._stamps):
            if descriptor is not None:
                os.close(descriptor)


def serve_tcp(sock: socket.socket, notes: Notes) -> None:
    while data := sock.recv(READ):
        notes.note(data)


def serve_tls(sock: socket.socket, notes: Notes, context: ssl.SSLContext) -> None:
    """Over a memory BIO: one system call reads many records, so that a record per event is no bottleneck here."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    shaken = False
    while data := sock.recv(READ):
        incoming.write(data)
        records: list[bytes] = []
        ended = False
        try:
            if not shaken:
                tls.do_handshake()
                shaken = True
            while record := tls.read(READ):
                records.append(record)
            ended = True
        except ssl.SSLWantReadError:
            pass
        if records:
            notes.note(b"".join(records))
        if ended:
            tls.unwrap()
        if outgoing.pending:
            sock.sendall(outgoing.read())
        if ended:
            return


def serve_http(sock: socket.socket, notes: Notes) -> None:
    buffer = b""
    while True:
        while (head := buffer.find(b"\r\n\r\n")) < 0:
            if not (data := sock.recv(READ)):
                return
            buffer += data
        length = _LENGTH.search(buffer, 0, head + 2)
        end = head + 4 + (int(length[1]) if length else 0)
        parts, size = [buffer], len(buffer)
        while size < end:
            if not (data := sock.recv(READ)):
                return
            parts.append(data)
            size += len(data)
        buffer = b"".join(parts)
        notes.note(buffer[head + 4 : end])
        buffer = buffer[end:]
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")


def tls_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.load_verify_locations(certificates / "client-ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("tls", "tcp", "http"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--certificates", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--stamps", action="store_true")
    options = parser.parse_args()
    context = tls_context(options.certificates) if options.mode == "tls" else None
    listener = socket.create_server(("127.0.0.1", options.port), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def serve(sock: socket.socket) -> None:
        notes = Notes(options)
        try:
            if context is not None:
                serve_tls(sock, notes, context)
            elif options.mode == "http":
                serve_http(sock, notes)
            else:
                serve_tcp(sock, notes)
        except OSError:  # a peer that goes without a word is what the benchmarks are about
            pass
        finally:
            sock.close()
            notes.close()

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
