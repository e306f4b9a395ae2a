"""Which of many images are shown: the same for the same arguments, so the same in a whole run."""

from collections.abc import Sequence


def evenly_spaced(size: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``size`` things, ascending, spread evenly from the first on.

    Of images that are sorted by class they take as many from each class.
    """
    count = min(count, size)
    return [i * size // count for i in range(count)]


def spread_queries(targets: Sequence[int], count: int) -> list[int]:
    """Places of at most ``count`` of the ``targets``, in the order of their classes.

    They are the first of classes spread evenly over all; the second and further of each class if need be.
    """
    places: dict[int, list[int]] = {}
    for place, target in enumerate(targets):
        places.setdefault(target, []).append(place)
    chosen: list[int] = []
    for turn in range(max(map(len, places.values()), default=0)):
        row = [places[target][turn] for target in sorted(places) if turn < len(places[target])]
        chosen += [row[i] for i in evenly_spaced(len(row), count - len(chosen))]
    return sorted(chosen, key=lambda place: (targets[place], place))
