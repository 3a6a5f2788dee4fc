"""Areas under the ROC curve against counting, and their intervals against resampling."""

import numpy as np
import pytest

from lustral.evaluation.roc import auroc, detected_share, smallest_detectable


def test_the_area_counts_pairs_and_its_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60).round(1)  # with ties
    y = (x + rng.normal(0.4, 0.5, size=60)).round(1)
    pairs = (x[:, None] < y[None, :]).mean() + 0.5 * (x[:, None] == y[None, :]).mean()
    rate = auroc(x, y)
    assert rate.value == pytest.approx(pairs, abs=1e-12)
    rows = rng.integers(60, size=(2000, 60))
    spread = np.std([(x[r][:, None] < y[r]).mean() + 0.5 * (x[r][:, None] == y[r]).mean() for r in rows])
    assert (rate.high - rate.low) / 2 == pytest.approx(1.96 * spread, rel=0.15)


def test_perfect_areas_have_an_interval() -> None:
    assert auroc([0.0, 1.0], [2.0, 3.0]).low < 0.9
    assert auroc([2.0, 3.0], [0.0, 1.0]).high > 0.1
    with pytest.raises(ValueError, match="no NaN"):
        auroc([0.0, float("nan")], [1.0, 2.0])


def test_a_threshold_lets_at_most_its_share_of_clean_images_through() -> None:
    clean = np.arange(100.0)
    assert detected_share(clean, clean, 0.05).value == 0.05
    assert detected_share(clean, clean + 50, 0.01).value == pytest.approx(0.51)


def test_the_smallest_detectable_budget_is_interpolated() -> None:
    assert smallest_detectable([0.1, 0.2, 0.3], [0.5, 0.9, 1.0]) == pytest.approx(0.25)
    assert smallest_detectable([0.1, 0.2], [0.96, 1.0]) is None
    assert smallest_detectable([0.1, 0.2], [0.5, 0.9]) == float("inf")
