"""A seam joins runs, in whatever order they come, to one line along the log."""

from __future__ import annotations

import random
from itertools import pairwise

from eventbus_fastapi.pipeline.run import Run
from eventbus_fastapi.pipeline.seam import Seam


def run(first: int, last: int) -> Run:
    return Run(first, last, None)


def spans(runs: list[Run]) -> list[tuple[int, int]]:
    return [(each.first, each.last) for each in runs]


def test_what_follows_moves_the_front() -> None:
    seam = Seam(10)
    assert spans(seam.add(run(11, 12))) == [(11, 12)]
    assert (seam.front, seam.gap_to, seam.waiting) == (12, None, 0)


def test_what_is_old_is_dropped() -> None:
    seam = Seam(10)
    assert seam.add(run(4, 10)) == []
    assert (seam.front, seam.waiting) == (10, 0)


def test_what_is_old_in_part_moves_the_front_too() -> None:
    seam = Seam(10)
    assert spans(seam.add(run(8, 12))) == [(8, 12)]
    assert seam.front == 12


def test_what_leaves_a_gap_waits_until_it_is_closed() -> None:
    seam = Seam(10)
    assert seam.add(run(15, 16)) == []
    assert seam.add(run(13, 14)) == []
    assert (seam.front, seam.gap_to, seam.waiting) == (10, 12, 2)
    assert spans(seam.add(run(11, 12))) == [(11, 12), (13, 14), (15, 16)]
    assert (seam.front, seam.gap_to, seam.waiting) == (16, None, 0)


def test_what_comes_twice_comes_once() -> None:
    seam = Seam()
    seam.add(run(3, 4))
    seam.add(run(3, 4))
    assert spans(seam.add(run(1, 3))) == [(1, 3), (3, 4)]
    assert seam.add(run(1, 3)) == []
    assert seam.waiting == 0


def test_the_front_can_be_moved_without_a_run() -> None:
    seam = Seam()
    seam.add(run(8, 9))
    seam.add(run(3, 4))
    assert spans(seam.move_to(7)) == [(8, 9)]
    assert seam.move_to(2) == []
    assert (seam.front, seam.waiting) == (9, 0)


def test_in_any_order_the_line_is_whole_in_the_end() -> None:
    chosen = random.Random(1)
    for _ in range(200):
        runs = []
        seq = 1
        while seq < 60:
            last = seq + chosen.randrange(5)
            runs += [run(seq, last)] * chosen.choice([1, 1, 2])
            seq = last + 1
        chosen.shuffle(runs)
        seam = Seam()
        joined = [each for one in runs for each in seam.add(one)]
        assert (seam.front, seam.waiting) == (seq - 1, 0)
        assert joined[0].first == 1
        assert all(after.first <= before.last + 1 for before, after in pairwise(joined))
