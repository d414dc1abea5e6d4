"""The queue: nothing overtakes, nothing is forgotten before it is proven, and its memory has an end."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from clawtrail.queue import MemoryQueue


def filled(n, size=10, **options):
    queue = MemoryQueue(**options)
    for i in range(n):
        queue.append(b"%0*d" % (size, i))
    return queue


@given(st.lists(st.integers(1, 60), max_size=30))
def test_frames_leave_in_the_order_in_which_they_came(limits):
    queue = filled(40)
    taken = b"".join(queue.take(limit) for limit in limits) + queue.take(10_000)
    assert taken == b"".join(b"%010d" % i for i in range(40))


def test_a_frame_larger_than_the_batch_leaves_alone():
    queue = MemoryQueue()
    queue.append(b"x" * 100)
    queue.append(b"y")
    assert queue.take(10) == b"x" * 100 and queue.take(10) == b"y" and queue.take(10) == b""


def test_a_frame_that_was_sent_and_not_proven_comes_again_after_a_break_byte_for_byte():
    queue = filled(10)
    first = queue.take(40)
    assert queue.unsent == 6 and len(queue) == 10
    assert queue.rewind() == 4
    assert queue.take(10_000) == first + b"".join(b"%010d" % i for i in range(4, 10))


def test_what_is_proven_does_not_come_again():
    queue = filled(10)
    queue.take(40)
    queue.prove_sent()
    assert queue.rewind() == 0 and queue.proven == 4 and len(queue) == 6


def test_the_window_keeps_at_least_its_size_of_sent_frames():
    queue = filled(100, window=205)
    queue.take(10_000)
    queue.trim()
    assert queue.rewind() == 21 and queue.proven == 79  # 21 frames of 10 bytes: the least that covers 205


def test_the_bound_counts_what_waits_and_room_comes_back_with_every_take():
    queue = filled(10, limit=100)
    assert not queue.has_room(1) and not queue.wait_for_room(1, 0.01)
    queue.take(20)
    assert queue.has_room(20) and not queue.has_room(21)


def test_whoever_waits_for_room_is_woken_by_it():
    queue = filled(10, limit=100)
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(queue.wait_for_room(50, 30)))
    waiter.start()
    queue.take(50)
    waiter.join(10)
    assert answers == [True]


def test_waiting_for_room_is_bounded():
    began = time.monotonic()
    assert not filled(10, limit=100).wait_for_room(1, 0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_a_frame_is_counted_at_every_moment_while_it_moves():
    queue, seen, done = filled(2000, window=1), set(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(len(queue))

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(300):
        queue.take(10_000)
        queue.rewind()
    done.set()
    looker.join(10)
    assert seen == {2000}


@given(st.lists(st.sampled_from(["append", "take", "rewind", "prove", "trim"]), max_size=60))
def test_every_frame_is_waiting_sent_or_proven_and_the_bytes_add_up(steps):
    queue, appended = MemoryQueue(window=30), 0
    for step in steps:
        if step == "append":
            queue.append(b"%04d" % appended)
            appended += 1
        elif step == "take":
            queue.take(12)
        elif step == "rewind":
            queue.rewind()
        elif step == "prove":
            queue.prove_sent()
        else:
            queue.trim()
        assert queue.proven + len(queue) == appended and queue.size == 4 * len(queue)
    queue.rewind()
    assert queue.take(10_000) == b"".join(b"%04d" % i for i in range(queue.proven, appended))
