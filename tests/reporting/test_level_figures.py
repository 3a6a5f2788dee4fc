"""The figures of noise levels and of several runs show the records' and the cards' own numbers, where there are any."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from lustral.reporting import level_histogram, levels_of, load_runs, report, write_report
from lustral.reporting.build import all_figures
from lustral.reporting.curves import sweep_curve
from lustral.reporting.frontier import fixed_lines, frontier, frontiers
from lustral.reporting.levels import bar_edges, score_curve
from lustral.reporting.runs import Run
from lustral.reporting.style import CLEAN, INK, ROBUST
from lustral.reporting.sweeps import find_sweeps


def _value(run: Run, kind: str) -> float:
    return 100 * run.card["verdicts"]["expected"][kind]["value"]


def _scattered(axes: Axes) -> list[np.ndarray]:
    return [np.asarray(each.get_offsets()) for each in axes.collections if isinstance(each, PathCollection)]


def _drawn(line: Line2D) -> np.ndarray:
    """(n, 2) the line's points."""
    return np.asarray(line.get_xydata())


def test_figures_are_made_where_there_are_data(make_run, tmp_path) -> None:
    plain = [make_run("undefended", 0.98, 0.05, purified=False), make_run("diffpure")]
    assert all_figures(load_runs(plain)).keys() == {"accuracy", "audit", "draws_8"}
    ssni = [*plain, make_run("ssni", temperature=10.0)]
    common = {"accuracy", "audit", "draws_8", "frontier", "level_histogram"}
    assert all_figures(load_runs(ssni)).keys() == common
    more = [*ssni, make_run("ssni_tau", temperature=5.0), make_run("ssni_eps", temperature=10.0, eps="4/255")]
    more += [make_run("diffpure_50", t_star=50), make_run("diffpure_eps", eps="4/255")]
    sweeps = {"sweep_temperature", "sweep_t_star", "sweep_eps", "sweep_eps-2", "scores", "frontier-2"}
    assert all_figures(load_runs(more)).keys() == common | sweeps


def test_figures_are_written_as_pictures_and_for_print(make_run, tmp_path) -> None:
    written = write_report([make_run("ssni", temperature=10.0), make_run("tau", temperature=5.0)], tmp_path / "report")
    for stem in ("level_histogram", "sweep_temperature", "frontier"):
        assert {path.suffix for path in written if path.stem == stem} == {".png", ".pdf"}
        assert f"({stem}.png)" in (tmp_path / "report" / "report.md").read_text()


def test_levels_and_scores_have_a_table(make_run) -> None:
    run = make_run("ssni", temperature=10.0)
    section = load_runs([run])[0].card["levels"]
    text = report([make_run("diffpure"), run])
    line = next(x for x in text.split("## Noise levels")[1].splitlines() if x.startswith("| ssni"))
    for quantity in ("level", "score"):
        for kind in ("clean", "adversarial"):
            rate = section[quantity][kind]
            assert f"{rate['value']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]" in line
    assert "Noise levels" not in report([make_run("alone")])


def test_the_histogram_is_of_the_records_own_levels(make_run) -> None:
    (run,) = load_runs([make_run("ssni", temperature=10.0)])
    levels = levels_of(run)
    assert levels is not None
    assert levels.clean == [record.statistics["level_clean"] for record in run.records.values()]
    assert levels.adversarial == [record.statistics["level_adversarial"] for record in run.records.values()]
    assert levels.full == 100
    axes = level_histogram({"ssni": levels}).axes[0]
    drawn = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    for values, patch in ((levels.clean, drawn[0]), (levels.adversarial, drawn[2])):
        data = patch.get_data()
        assert data.values.sum() == pytest.approx(100)
        for height, low, high in zip(data.values, data.edges[:-1], data.edges[1:], strict=True):
            assert height == pytest.approx(100 * sum(low <= value < high for value in values) / 120)
    assert _drawn(axes.lines[0])[:, 0].tolist() == [100, 100]
    assert axes.get_ylim()[1] >= max(patch.get_data().values.max() for patch in drawn)


def test_bars_hold_every_level_and_are_whole_steps() -> None:
    assert bar_edges([3.0, 5.0]).tolist() == [2.5, 3.5, 4.5, 5.5]
    for values in ([0.0, 105.0], [3.2, 3.4], [0.5, 1.5], [20.0, 71.6]):
        edges = bar_edges(values)
        assert edges[0] <= min(values)
        assert max(values) < edges[-1]
        assert set(np.diff(edges) % 1) == {0.0}


def test_equal_levels_have_no_histogram(make_run) -> None:
    (run,) = load_runs([make_run("ssni", temperature=10.0)])
    for record in run.records.values():
        record.statistics.update(level_clean=50.0, level_adversarial=50.0)
    assert levels_of(run) is None
    (plain,) = load_runs([make_run("diffpure")])
    assert levels_of(plain) is None


def test_the_curve_is_of_the_cards_numbers(make_run) -> None:
    taus = [1.0, 4.0, 20.0]
    runs = load_runs([make_run(f"{tau}", 0.95, 0.4 + 0.01 * tau, temperature=tau) for tau in taus])
    plain = load_runs([make_run("plain", 0.99, 0.05, purified=False), make_run("far", purified=False, eps="1/255")])
    (sweep,) = find_sweeps(runs)
    figure = sweep_curve(sweep, {run.task: run for run in plain})
    axes = figure.axes[0]
    for kind, drawn in zip(("clean", "robust"), _scattered(axes), strict=True):
        np.testing.assert_allclose(drawn, [(tau, _value(run, kind)) for tau, run in zip(taus, runs, strict=True)])
    dashed = {line.get_color(): _drawn(line) for line in axes.lines if line.get_linestyle() == "--"}
    for colour, kind in ((CLEAN, "clean"), (ROBUST, "robust")):
        np.testing.assert_allclose(dashed[colour], [(tau, _value(plain[0], kind)) for tau in taus])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "20"]
    assert "undefended" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert not [line for line in sweep_curve(sweep, {}).axes[0].lines if line.get_linestyle() == "--"]


def test_scores_are_drawn_against_the_budget(make_run) -> None:
    runs = load_runs([make_run(eps.replace("/", "_"), temperature=10.0, eps=eps) for eps in ("4/255", "8/255")])
    (sweep,) = find_sweeps(runs)
    axes = score_curve(sweep).axes[0]
    for kind, drawn in zip(("clean", "adversarial"), _scattered(axes), strict=True):
        means = [np.mean([r.statistics[f"score_{kind}"] for r in run.records.values()]) for run in runs]
        np.testing.assert_allclose(drawn, list(zip((4 / 255, 8 / 255), means, strict=True)))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4/255", "8/255"]


def test_the_frontier_joins_fixed_levels(make_run) -> None:
    runs = load_runs(
        [
            make_run("t100", 0.9, 0.6),
            make_run("t50", 0.95, 0.5, t_star=50),
            make_run("ssni", 0.97, 0.55, temperature=10.0, gain=-1.0),
            make_run("plain", 0.98, 0.05, purified=False),
            make_run("elsewhere", eps="4/255"),
        ]
    )
    (group,) = frontiers(runs)
    assert [run.name for run in group] == ["t100", "t50", "ssni"]
    (label,) = fixed_lines(group)
    assert label == "DiffPure, one t for all"
    assert [(level, run.name) for level, run in fixed_lines(group)[label]] == [(50.0, "t50"), (100.0, "t100")]
    figure = frontier(group)
    lines = {(line.get_color(), line.get_marker()): line for line in figure.axes[0].lines if len(_drawn(line))}
    expected = [[_value(run, "clean"), _value(run, "robust")] for run in (group[1], group[0], group[2])]
    np.testing.assert_allclose(_drawn(lines[INK, "None"]), expected[:2])
    np.testing.assert_allclose(_drawn(lines[ROBUST, "o"]), expected[2:])
    assert lines[ROBUST, "o"].get_markerfacecolor() == "white"  # its attack did not work
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [label, "ssni"]
    assert {str(text.get_text()) for text in figure.axes[0].texts} == {"t = 50", "t = 100"}
