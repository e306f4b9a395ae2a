import pytest

from callbacks.pure.choosing import evenly_spaced, spread_queries


@pytest.mark.parametrize(("size", "count", "places"), [(10, 5, [0, 2, 4, 6, 8]), (3, 9, [0, 1, 2]), (0, 4, [])])
def test_evenly_spaced(size: int, count: int, places: list[int]) -> None:
    assert evenly_spaced(size, count) == places


def test_shown_queries_are_spread_over_the_classes():
    targets = [3, 3, 0, 1, 2, 0, 4, 5, 6, 7, 8, 9]
    assert [targets[i] for i in spread_queries(targets, 5)] == [0, 2, 4, 6, 8]
    assert spread_queries(targets, 5)[0] == 2  # the first of its class
    assert [targets[i] for i in spread_queries(targets, 11)] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert spread_queries([1, 1, 1], 2) == [0, 1]
    assert spread_queries([1, 0], 5) == [1, 0]
    assert spread_queries([], 5) == []
