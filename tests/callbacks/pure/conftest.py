import pytest

from callbacks.pure.canvas import Canvas


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on any canvas from now on, in its order."""
    texts: list[str] = []
    real = Canvas.text

    def listening(self: Canvas, x: float, y: float, text: str, **style: object) -> None:
        texts.append(text)
        real(self, x, y, text, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(Canvas, "text", listening)
    return texts
