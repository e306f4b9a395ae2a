"""scripts/plateau.py: what it measures, against the definitions; that it keeps and takes up its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plateau
import pytest
import torch

from lightning_modules import AlexNetClassifier

QUICK = ["--source", "shapes10", "--subset_size", "250", "--steps", "2"]


def test_signal_is_spread_over_images() -> None:
    """The same picture for all images is large and tells nothing; numpy's own standard deviation for the rest."""
    same = torch.randn(1, 3, 4, 4).expand(5, 3, 4, 4)
    size, spread = plateau.signal(same)
    assert size == pytest.approx(same.square().mean().sqrt().item())
    assert spread == pytest.approx(0, abs=1e-6)
    values = torch.randn(6, 7) + 3
    expected = np.sqrt(np.var(values.double().numpy(), axis=0).mean())
    assert plateau.signal(values)[1] == pytest.approx(expected)


def test_start_of_the_paper_s_and_of_he_s() -> None:
    """Biases drown the signal of the paper's network; He's keeps its size, to within the poolings' factor."""
    images, targets = torch.randn(10, 3, 64, 64), torch.arange(10)
    starts = {}
    for init in ("paper", "he"):
        torch.manual_seed(0)
        model = AlexNetClassifier(image_size=64, conv1_stride=2, schedule="constant", init=init)
        starts[init] = plateau.measure_start(model, images, targets)
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
    assert list(starts["he"]) == list(plateau.LAYERS)
    assert starts["paper"]["fc7"]["spread"] < 1e-2 * starts["paper"]["fc7"]["size"]
    assert starts["he"]["fc7"]["spread"] > 0.1 * starts["he"]["fc7"]["size"]
    assert starts["he"]["conv1"]["step"] > 0


def test_every_trial_can_be_built() -> None:
    for name, trial in plateau.TRIALS.items():
        network = {"image_size": 64, "conv1_stride": 2, "schedule": "constant", **trial.model}
        assert AlexNetClassifier(**network).net.init == trial.model["init"], name


def test_figures_are_kept_and_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plateau, "keep_memory", lambda: False)
    monkeypatch.setattr(plateau, "SIZE", 24)
    where = [word for kind in ("json", "png", "md") for word in (f"--{kind}", str(tmp_path / f"p.{kind}"))]
    (tmp_path / "p.md").write_text("before\n<!-- plateau -->\n<!-- /plateau -->\nafter\n")

    def call(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["plateau.py", *QUICK, *where, *words])
        plateau.main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit):
        call("--only", "he", "--steps", "0")
    assert "--steps: 0, expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()
    out = call("--only", "he")
    kept = json.loads((tmp_path / "p.json").read_text())
    losses = kept["he"]["losses"]
    assert len(losses) == 2
    assert f"loss of the last ten steps {np.mean(losses):.3f}" in out
    assert "| He's initialisation, biases 0 |" in out
    assert (tmp_path / "p.png").stat().st_size > 1000

    page = (tmp_path / "p.md").read_text()
    assert "| He's initialisation, biases 0 |" in page
    assert (page[:7], page[-6:]) == ("before\n", "after\n")

    monkeypatch.setattr(plateau, "run", lambda *args, **kwargs: pytest.fail("trained again"))
    assert "| He's initialisation, biases 0 |" in call("--only", "he")
    assert "| He's initialisation, biases 0 |" in call("--plot")
    assert "| He's initialisation, biases 0 |" in call("--only", "he", "--root", "elsewhere")  # a place, no setting
    before = [(tmp_path / f"p.{kind}").read_bytes() for kind in ("json", "png", "md")]
    with pytest.raises(SystemExit):
        call("--only", "paper", "--steps", "1")  # which would stand beside those of two steps
    assert "p.json has he with {'seed': 0, 'steps': 2, " in capsys.readouterr().err
    assert [(tmp_path / f"p.{kind}").read_bytes() for kind in ("json", "png", "md")] == before


def test_other_figures_leave_picture_and_page_of_the_project_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.md").write_text("The user's own.\n")
    (tmp_path / "p.json").write_text((plateau.ROOT / "results/plateau.json").read_text(encoding="utf-8"))
    ours = [plateau.ROOT / "docs" / name for name in ("plateau.png", "plateau.md")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in ours]
    monkeypatch.setattr("sys.argv", ["plateau.py", "--plot", "--json", str(tmp_path / "p.json")])
    plateau.main()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in ours] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.md", "p.png"]
    assert (tmp_path / "p.md").read_text() == "The user's own.\n"


def test_the_page_s_table_is_that_of_the_figures() -> None:
    page = (plateau.ROOT / "docs" / "plateau.md").read_text()
    assert plateau.table(json.loads((plateau.ROOT / "results" / "plateau.json").read_text())) in page
