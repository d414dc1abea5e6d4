"""Several receivers, one after the other: who takes over, who comes back, and with which certificate; nothing is lost between them."""

import os
import shutil
import socket

import pytest

from apart import Load, judge, once
from clawtrail import shipper
from clawtrail.pki import Authority, pem, write
from conftest import NAMES, client_folder, server_files
from receiver import Receiver
from support import eventually


def names(*receivers):
    return [f"{r.host}:{r.port}" for r in receivers]


def together(load, recorder, *receivers):
    """Waits until all have everything between them. Each saw it in order; together it is one whole chain."""
    eventually(lambda: len(once([m.event for r in receivers for m in r.messages])) >= recorder.stats()["accepted"], state=recorder.stats)
    for r in receivers:
        first = list(dict.fromkeys(m.seq for m in r.messages))
        assert first == sorted(first), "new before old"
    (events,) = judge(sorted((m for r in receivers for m in r.messages), key=lambda m: m.seq)).values()
    assert [e["params"]["i"] for e in events if e["kind"] == "tool.call"] == list(range(load.count))
    assert recorder.stats()["dropped"] == recorder.stats()["refused"] == {}


def more(load, recorder, n=200):
    eventually(lambda target=load.count + n: load.count > target, state=recorder.stats)


@pytest.fixture
def two(make_receiver):
    return make_receiver(), make_receiver()


def test_a_second_receiver_takes_over_at_once_when_the_first_goes_down(two, make_recorder):
    first, second = two
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        more(load, recorder)
        assert recorder.stats()["endpoint"] == names(first)[0] and second.connections == 0
        first.kill()
        eventually(lambda: recorder.stats()["endpoint"], names(second)[0], within=3, state=recorder.stats)
        more(load, recorder)
    together(load, recorder, first, second)
    assert recorder.stats()["resent"] > 0 and second.connections == 1


def test_a_receiver_that_is_down_from_the_start_is_passed_over_at_once(two, make_recorder):
    first, second = two
    first.kill()
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        eventually(lambda: recorder.stats()["endpoint"], names(second)[0], within=2, state=recorder.stats)
        more(load, recorder)
    together(load, recorder, second)


def test_a_preferred_receiver_that_comes_back_is_used_again_without_loss(two, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "FAIL_BACK", 0.2)
    monkeypatch.setattr(shipper, "FILES", 0.05)
    first, second = two
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        for _ in range(2):
            more(load, recorder)
            first.kill()
            eventually(lambda: recorder.stats()["endpoint"], names(second)[0], state=recorder.stats)
            more(load, recorder)
            first.start()
            eventually(lambda: recorder.stats()["endpoint"], names(first)[0], state=recorder.stats)
        more(load, recorder)
    together(load, recorder, first, second)
    assert second.clean_ends == second.connections == 2  # it was left in order


def test_a_backlog_that_takes_long_is_no_reason_to_stay_with_the_second(two, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "FAIL_BACK", 0.1)
    monkeypatch.setattr(shipper, "FILES", 0.02)
    first, second = two
    for receiver in two:
        receiver.kill()
    recorder = make_recorder([first.address, second.address])
    with Load(recorder, rate=10_000, size=1900) as load:
        more(load, recorder, 8000)
    second.slice = 4096, 0.005
    second.start()
    eventually(lambda: recorder.stats()["connected"], state=recorder.stats)
    first.start()
    eventually(lambda: recorder.stats()["endpoint"], names(first)[0], within=5, state=recorder.stats)
    second.slice = None
    together(load, recorder, first, second)


def test_of_two_that_are_down_the_one_that_comes_back_gets_everything(two, make_recorder):
    first, second = two
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        more(load, recorder)
        first.kill()
        second.kill()
        eventually(lambda: all(n in recorder.stats()["last_error"] for n in names(first, second)), state=recorder.stats)
        more(load, recorder)
        second.start()
        eventually(lambda: recorder.stats()["endpoint"], names(second)[0], state=recorder.stats)
    together(load, recorder, first, second)


def test_what_the_first_took_and_never_read_is_sent_to_the_second(two, make_recorder):
    first, second = two
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        more(load, recorder)
        first.hang = True
        more(load, recorder)
        first.kill()
        more(load, recorder)
    together(load, recorder, first, second)
    eventually(lambda: len(second.events()), recorder.stats()["accepted"], state=recorder.stats)  # the whole window, and not what was missing only


def test_a_preferred_receiver_that_lets_in_and_breaks_does_not_keep_the_second_from_its_turn(two, make_recorder):
    first, second = two
    first.reset_after = 1
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        eventually(lambda: second.connections, within=5, state=recorder.stats)
        more(load, recorder)
    together(load, recorder, second)
    assert first.connections < 5


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.fixture
def listening(pki):
    made = []

    def listen(host):
        made.append(Receiver(*pki.server, pki.client_ca, host=host).start())
        return made[-1]

    yield listen
    for r in made:
        r.kill()
        assert not r.failures


IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


@IPV6
@pytest.mark.parametrize("order", [1, -1], ids=["IPv6 first", "IPv4 first"])
def test_endpoints_of_both_families_take_over_from_each_other(order, listening, make_recorder):
    first, second = [listening("::1"), listening("127.0.0.1")][::order]
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        more(load, recorder)
        first.kill()
        eventually(lambda: second.connections, state=recorder.stats)
        more(load, recorder)
    together(load, recorder, first, second)


@IPV6
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_a_name_reaches_a_receiver_that_listens_on_one_family_only(host, listening, make_recorder):
    if len({a[0] for a in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)}) < 2 and host == "::1":
        pytest.skip("localhost has no IPv6 address here")
    receiver = listening(host)
    recorder = make_recorder(("localhost", receiver.port))
    with Load(recorder) as load:
        more(load, recorder)
    load.arrived(receiver)
    assert recorder.stats()["endpoint"] == f"localhost:{receiver.port}"


# -- certificates --------------------------------------------------------------------------------------------------


@pytest.fixture
def rotation(tmp_path, make_receiver):
    """A receiver, the folder of a client, and what makes the certificates of one anew."""
    server_ca, client_ca = Authority.create("receiver CA"), Authority.create("client CA")
    write(tmp_path / "client-ca.crt", pem(client_ca.certificate), 0o644, os.geteuid())
    receiver = make_receiver(server_files(tmp_path / "server", server_ca, NAMES), tmp_path / "client-ca.crt")

    def issue(name):
        return client_folder(tmp_path / name, server_ca, client_ca, name)

    return receiver, shutil.copytree(issue("agent-1"), tmp_path / "used"), issue


def replace(folder, new, file):
    shutil.copy(new / file, folder / "new")
    (folder / "new").rename(folder / file)


def test_renewed_certificates_are_used_while_it_runs_and_nothing_is_lost(rotation, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "FILES", 0.05)
    receiver, folder, issue = rotation
    recorder = make_recorder(receiver.address, folder)
    with Load(recorder) as load:
        for name in ("renewed-1", "renewed-2"):
            more(load, recorder)
            new = issue(name)
            replace(folder, new, "client.crt")
            more(load, recorder)  # the key does not fit now: what is loaded stays in use
            assert receiver.subjects[-1] != name and recorder.stats()["connected"]
            replace(folder, new, "client.key")
            eventually(lambda: receiver.subjects[-1], name, state=recorder.stats)
        more(load, recorder)
    load.arrived(receiver)
    assert receiver.subjects == ["agent-1", "renewed-1", "renewed-2"]
    assert receiver.clean_ends == 2 and receiver.ragged_ends == 0 and recorder.stats()["resent"] == 0


def test_a_certificate_that_is_renewed_after_it_was_refused_is_tried_at_once(rotation, make_recorder, pki):
    receiver, folder, issue = rotation
    good = issue("renewed")
    for file in ("client.crt", "client.key"):
        replace(folder, pki.stranger, file)
    recorder = make_recorder(receiver.address, folder)
    with Load(recorder) as load:
        eventually(lambda: "does not trust" in recorder.stats()["last_error"], state=recorder.stats)
        for file in ("client.crt", "client.key"):
            replace(folder, good, file)
        eventually(lambda: receiver.subjects, ["renewed"], state=recorder.stats)
    load.arrived(receiver)


def test_a_preferred_receiver_that_resets_every_handshake_is_no_way_back(make_receiver, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "FAIL_BACK", 0.05)
    monkeypatch.setattr(shipper, "FILES", 0.02)
    first, second = make_receiver(), make_receiver()
    first.refuse = "certificate"
    recorder = make_recorder([first.address, second.address])
    with Load(recorder) as load:
        eventually(lambda: len(first.handshakes_failed) > 5, state=recorder.stats)  # it was asked again and again
        assert recorder.stats()["connects"] == 1 and recorder.stats()["endpoint"] == names(second)[0]
    together(load, recorder, second)
    assert second.connections == 1
