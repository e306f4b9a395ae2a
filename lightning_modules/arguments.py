"""How network and classifier refuse an argument."""


def check(ok: bool, argument: str, value: object, expected: str, remedy: str) -> None:
    """Raise a ValueError unless ``ok``: ``lr: -1.0, expected a finite number above 0. Choose one, such as 0.01.``"""
    if not ok:
        raise ValueError(f"{argument}: {value}, expected {expected}. {remedy}.")


def check_choice(argument: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    check(value in choices, argument, repr(value), " or ".join(map(str, choices)), "Choose one of these")
