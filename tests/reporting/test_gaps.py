"""The gap to fixed noise levels, by hand and on runs."""

import numpy as np
import pytest

from lustral.reporting import load_runs, report
from lustral.reporting.gaps import above, frontier_gaps


@pytest.mark.parametrize(
    ("clean", "rivals", "best"),
    [
        (0.94, [(0.90, 0.60), (0.98, 0.40)], 0.50),  # half way between the two
        (0.98, [(0.90, 0.60), (0.98, 0.40)], 0.40),
        (0.99, [(0.90, 0.60), (0.98, 0.40)], 0.40),  # nobody is as accurate: the most accurate
        (0.85, [(0.90, 0.60), (0.98, 0.40)], 0.60),  # both are more accurate: the more robust
        (0.94, [(0.90, 0.60), (0.94, 0.45), (0.98, 0.40)], 0.50),  # a level below the line of two others is no help
        (0.94, [(0.90, 0.60), (0.94, 0.55), (0.98, 0.40)], 0.55),
        (0.92, [(0.90, 0.30), (0.98, 0.50)], 0.50),  # more accurate and more robust
    ],
)
def test_the_most_that_fixed_levels_give(clean: float, rivals: list[tuple[float, float]], best: float) -> None:
    means = np.array([(clean, 0.7), *rivals]).T
    assert above(means) == pytest.approx(0.7 - best)
    np.testing.assert_allclose(above(np.stack([means, means])), 0.7 - best)


def test_runs_above_the_fixed_levels_stand_out(make_run) -> None:
    """120 images: 0.9 is far above what levels of 0.5 and 0.6 give, 0.4 is below it."""
    fixed = [make_run("t100", 0.9, 0.6), make_run("t50", 0.97, 0.5, t_star=50)]
    good = make_run("good", 0.93, 0.9, temperature=10.0)
    usual = make_run("usual", 0.93, 0.4, temperature=10.0)
    others = [
        make_run("transfer", 0.93, 0.9, temperature=10.0, target="worst"),
        make_run("other_attack", 0.93, 0.9, temperature=10.0, step_size=0.01),
        make_run("weakly_attacked", 0.96, 0.95, t_star=75, step_size=1e-4),  # no rival of those above
    ]
    runs = {run.name: run for run in load_runs([*fixed, good, usual, *others])}
    gaps = {gap.run: gap for gap in frontier_gaps(list(runs.values()))}
    assert gaps.keys() == {"good", "usual"}
    assert gaps["good"].levels == (50.0, 100.0)
    assert gaps["good"].n == 120
    assert gaps["good"].robust.verdict == "better"
    for name, gap in gaps.items():
        means = np.array([np.mean(runs[each].verdicts("expected"), axis=1) for each in (name, "t100", "t50")]).T
        assert gap.robust.difference == pytest.approx(float(above(means)))
        assert gap.robust.low < gap.robust.difference < gap.robust.high
    assert gaps["usual"].robust.verdict != "better"
    text = report([*fixed, good])
    assert "## Against fixed noise levels" in text
    assert f"{100 * gaps['good'].robust.difference:+.1f} [" in text


def test_one_fixed_level_is_no_frontier(make_run) -> None:
    assert not frontier_gaps(load_runs([make_run("t100"), make_run("ssni", temperature=10.0)]))
