"""Work divided among threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from microscope.threads import alone, in_pieces, only_pieces_divided, start_in_pieces


@pytest.fixture(params=[1, 3])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_compute_alone(threads) -> None:
    results = in_pieces(lambda first, last: (first, last, torch.get_num_threads()), 10, 4)
    assert [piece[:2] for piece in results] == [(0, 4), (4, 8), (8, 10)]
    assert {piece[2] for piece in results} == {1}


def test_a_task_alone_computes_on_one_thread_and_the_others_keep_theirs(threads) -> None:
    assert alone(torch.get_num_threads) == 1
    assert torch.get_num_threads() == threads
    handle: list[int] = []
    other = threading.Thread(target=lambda: handle.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert handle == [threads]


def test_only_pieces_are_divided_and_afterwards_everything_is_as_before(threads) -> None:
    with only_pieces_divided():
        assert torch.get_num_threads() == 1
        found = in_pieces(lambda _first, _last: (threading.get_ident(), torch.get_num_threads()), 40, 1)
        assert {inside for _, inside in found} == {1}
        assert (threading.get_ident() in {thread for thread, _ in found}) == (threads == 1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert alone(torch.get_num_threads) == 1


def test_a_task_that_fails_alone_fails_where_it_was_asked_for(threads) -> None:
    with pytest.raises(ZeroDivisionError):
        alone(lambda: 1 // 0)


def test_what_is_stopped_runs_no_more(threads) -> None:
    gate, ran = threading.Event(), []

    def task(first: int, last: int) -> None:
        assert gate.wait(20)
        ran.append(first)

    handle = start_in_pieces(task, 12, 1)
    threading.Timer(0.1, gate.set).start()
    handle.stop()
    count = len(ran)
    assert count <= (threads if threads > 1 else 0)  # those that ran already; one thread had not handle
    assert gate.wait(20)
    assert len(ran) == count
