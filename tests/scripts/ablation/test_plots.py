"""The figures of a sweep: which lines they have, and where."""

from __future__ import annotations

import numpy as np
import pytest
from ablation.claims import BASELINE
from ablation.plots import curves_figure, figure1, mean_curve
from helpers.ablation import a_run


def test_curves_over_seeds() -> None:
    runs = [a_run("no_lrn", 0, train=[0.1, 0.3, 0.5]), a_run("no_lrn", 1, train=[0.2, 0.6])]
    runs += [a_run(BASELINE, 0, train=[0.3, 0.4, 0.5])]
    curve = mean_curve({0: runs[0], 1: runs[1]}, "train_top1")
    assert curve is not None
    assert curve.epochs == [1, 2]  # those that both have
    assert curve.mean == pytest.approx([0.15, 0.45])
    assert curve.std == pytest.approx([np.std([0.1, 0.2], ddof=1), np.std([0.3, 0.6], ddof=1)])
    figure = curves_figure(runs)
    assert figure is not None
    (axis,) = figure.axes
    grey, blue = axis.lines
    assert list(grey.get_ydata()) == pytest.approx([0.15, 0.2, 0.25])
    assert list(blue.get_ydata()) == pytest.approx([0.075, 0.225])
    assert blue.get_label() == "no_lrn (n = 2)"
    assert curves_figure([a_run(BASELINE, 0, history=[])]) is None


def test_figure_1() -> None:
    runs = [a_run(BASELINE, 0, train=[0.5, 0.76, 0.9, 0.9]), a_run("tanh", 0, train=[0.3, 0.5, 0.7, 0.75])]
    figure = figure1(runs)
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if str(line.get_label()).startswith(("ReLU", "tanh"))]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]  # as in the paper
    assert list(lines[0].get_ydata()) == pytest.approx([0.5, 0.24, 0.1, 0.1])
    assert list(lines[0].get_xdata()) == pytest.approx([0.5, 1.5, 2.5, 3.5])  # epochs' middles
    assert "25 % after 1.5 epochs" in str(lines[0].get_label())
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == pytest.approx(
        [0.5 + 0.25 / 0.26, 3.5]
    )


def test_without_tanh_there_is_no_figure_1() -> None:
    runs = [a_run(BASELINE, 0), a_run("tanh", 0)]
    assert figure1(runs) is not None  # whether or not 25 % were reached
    assert figure1(runs[:1]) is None
