"""The examples that end by themselves: what they print, and that they leave nothing behind."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.examples.running import Finished, free_port, run

CHAT = """\
Subscriber received: [chat.user1] Hello from User1!
Subscriber received: [chat.user1] How's it going?
Subscriber received: [chat.user1] Batch message 1
Subscriber received: [chat.user1] Batch message 2
Test completed!
"""
DUPLICATES = """\
published, and stored as seq 1
published 20 times more: 20 duplicates of seq 1
received seq 1: order=7 cents=1999
received seq 2: order=8 cents=500
the log ends with seq 2
"""
PERSISTENCE = """\
live:     seq 1, order.placed {'order': 1}
the server is killed, and started again
resumed:  seq 2, order.placed {'order': 2}
live:     seq 3, order.paid {'order': 1}
replayed: seq 1, order.placed {'order': 1}
replayed: seq 2, order.placed {'order': 2}
replayed: seq 3, order.paid {'order': 1}
"""
LOAD = re.compile(r"10,000 events in \d+\.\d\d s, in order: [\d,]+ events/s\n")


def ends_well(finished: Finished) -> bool:
    """Check that an example has ended as it should, and return True."""
    assert finished.code == 0, finished.err
    assert not finished.has_left_processes
    assert finished.left_files == []
    return True


def test_chat_prints_what_the_subscriber_was_told_each_time(tmp_path: Path) -> None:
    """Given chat.py runs twice in one place, then both times it prints four messages and its end, and nothing else."""
    port = str(free_port())
    for _ in range(2):
        chat = run("chat.py", tmp_path, EVENTBUS_PORT=port)
        assert ends_well(chat)
        assert chat.out == CHAT
        assert chat.err == ""


@pytest.mark.parametrize("name", ["chat.py", "persistence.py", "load.py"])
def test_a_port_that_is_taken_ends_the_example_at_once(name: str, tmp_path: Path) -> None:
    """Given somebody listens on the port, when an example wants to serve there, then it says so in a line and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finished = run(name, tmp_path, EVENTBUS_PORT=str(taken.getsockname()[1]))
    assert finished.code == 1
    assert finished.err.count("\n") == 1
    assert "address already in use" in finished.err.lower()
    assert finished.out == ""
    assert not finished.has_left_processes
    assert finished.left_files == []


def test_duplicates_shows_that_one_message_id_is_one_event(tmp_path: Path) -> None:
    duplicates = run("duplicates.py", tmp_path)
    assert ends_well(duplicates)
    assert duplicates.out == DUPLICATES
    assert duplicates.err == ""


def test_persistence_shows_that_events_and_readers_outlive_a_killed_server(tmp_path: Path) -> None:
    persistence = run("persistence.py", tmp_path, EVENTBUS_PORT=str(free_port()))
    assert ends_well(persistence)
    assert persistence.out == PERSISTENCE
    assert persistence.err == ""


def test_load_reads_all_events_in_order_and_prints_the_rate(tmp_path: Path) -> None:
    load = run("load.py", tmp_path, EVENTBUS_PORT=str(free_port()))
    assert ends_well(load)
    assert LOAD.fullmatch(load.out)
    assert "100%" in load.err  # the progress bar
