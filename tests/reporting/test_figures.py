"""Figures are drawn from the right numbers, without touching the user's matplotlib."""

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lustral.evaluation import Rate
from lustral.reporting import accuracy_bars, budget_curve, draws_histogram, load_runs, panel_figure
from lustral.reporting.panels import magnification


def pixels(figure: Figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, format="rgba", dpi=60)
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


def test_bars_are_the_cards_accuracies(make_run) -> None:
    runs = load_runs([make_run("a"), make_run("b", robust=0.2, gain=-1.0)])
    before = dict(mpl.rcParams)
    figure = accuracy_bars({run.name: run.card for run in runs})
    assert dict(mpl.rcParams) == before
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    expected = [100 * run.card["verdicts"]["expected"][kind]["value"] for run in runs for kind in ("clean", "robust")]
    assert widths == pytest.approx(expected)
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, False, True, True]
    assert "SUSPECT" in axes.get_yticklabels()[1].get_text()
    assert "rule: expected" in axes.get_xlabel()
    assert len(np.unique(pixels(figure))) > 20


def test_audit_dots_are_the_cards_accuracies(make_run) -> None:
    run = load_runs([make_run("a")])[0]
    figure = budget_curve({"a": run.audit_rates()}, {"a": 16})
    accuracy = run.card["audit"]["expected_accuracy"]
    names = ["attack", "random_directions", "bpda", "known_noise", "double_eps", "large_eps"]
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == pytest.approx([100 * accuracy[name] for name in names])
    assert "n = 16" in figure.axes[0].get_title()


def test_more_runs_than_fit_a_row(make_run) -> None:
    rates = {f"run {i}": {"attack": Rate(0.5, 0.4, 0.6), "new_attack": Rate(0.4, 0.3, 0.6)} for i in range(4)}
    figure = budget_curve(rates, dict.fromkeys(rates, 8))
    assert len(figure.axes) == 4
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["the attack", "new_attack"]


def test_histogram_counts_images() -> None:
    figure = draws_histogram({"a": ([1.0, 1.0, 0.5, 1.0], [0.0, 0.25, 0.25, 1.0])}, 4)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0, 0, 25, 0, 75, 25, 50, 0, 0, 25])


@pytest.mark.parametrize("channels", [1, 3])
def test_panels_show_the_images(channels: int) -> None:
    clean = torch.full((2, channels, 8, 8), 0.5)
    adversarial = clean.clone()
    adversarial[0, :, 0, 0] += 0.1
    images = {"clean": clean, "adversarial": adversarial, "purified": 3 * clean}
    figure = panel_figure(images, ["7 → 1", "2 → 2"])
    grid = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(grid) == 4 * 2
    assert np.allclose(grid[2], adversarial[0].movedim(0, -1).squeeze())
    assert grid[4].max() == 1.0  # clipped for display
    difference = grid[6]
    assert np.allclose(difference.reshape(64, -1)[0], 1.0)  # the largest change, magnified 5 times, about grey
    assert np.allclose(difference.reshape(64, -1)[1:], 0.5)
    assert "\N{MULTIPLICATION SIGN}5" in figure.axes[6].get_ylabel()
    assert figure.axes[0].get_title() == "7 → 1"
    assert figure.axes[0].get_images()[0].get_interpolation() == "nearest"
    assert len(np.unique(pixels(figure))) > 5


def test_panels_refuse_what_they_cannot_show() -> None:
    with pytest.raises(ValueError, match="'clean' have shape"):
        panel_figure({"clean": torch.zeros(2, 2, 8, 8)}, ["a", "b"])
    with pytest.raises(ValueError, match="one a title"):
        panel_figure({"clean": torch.zeros(2, 1, 8, 8)}, ["a"])


def test_magnification() -> None:
    assert magnification(8 / 255) == 15
    assert magnification(0.15) == 3
    assert magnification(0.9) == 1
    assert magnification(0.0) == 1
