from sdpl.server.batcher import Batcher

FOREVER = 1 << 62


def filled(count: int, **options) -> Batcher[int]:
    batcher: Batcher[int] = Batcher((1, 2, 4, 8), **options)
    for i in range(count):
        batcher.add(i, arrival=100 + i, deadline=FOREVER)
    return batcher


def test_a_batch_is_the_largest_size_that_the_line_fills():
    batcher = filled(7)
    sizes = [len(batcher.take()) for _ in range(3)]
    assert sizes == [4, 2, 1]
    assert len(batcher) == 0


def test_rows_leave_in_their_order_with_their_arrival():
    assert filled(5).take() == [(0, 100), (1, 101), (2, 102), (3, 103)]


def test_no_batch_is_larger_than_the_largest_size():
    assert len(filled(100).take()) == 8


def test_without_delay_whatever_waits_may_leave_at_once():
    assert filled(0).ready_at() is None
    assert filled(1).ready_at() == 100


def test_with_delay_the_oldest_row_is_held_back_unless_a_batch_is_full():
    assert filled(7, max_delay=50).ready_at() == 150
    assert filled(8, max_delay=50).ready_at() == 100


def test_late_and_cancelled_rows_are_dropped_and_told():
    batcher: Batcher[str] = Batcher((1, 2))
    batcher.add("late", arrival=0, deadline=10)
    batcher.add("cancelled", arrival=1, deadline=FOREVER)
    batcher.add("good", arrival=2, deadline=FOREVER)
    batcher.cancel("cancelled")
    assert batcher.drop(now=10) == (["late"], ["cancelled"])
    assert batcher.take() == [("good", 2)]


def test_cancelling_what_has_left_does_nothing_to_a_later_row_of_the_same_name():
    batcher = filled(1)
    batcher.take()
    batcher.cancel(0)
    batcher.add(0, arrival=5, deadline=FOREVER)
    assert batcher.drop(now=0) == ([], [])
    assert batcher.take() == [(0, 5)]


def test_rows_of_a_lost_sender_are_removed():
    batcher = filled(4)
    batcher.remove(lambda row: row % 2 == 0)
    assert [row for row, _ in batcher.take()] == [1, 3]
