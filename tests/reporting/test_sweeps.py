"""Curves are drawn of runs that differ in exactly one argument."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustral.diffusion import EulerMaruyama, LinearSchedule, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.purifiers import GDMP, SSNI, ConstantMask, DiffPure, HeterogeneousNoise, MSEGuidance, SigmoidLevels
from lustral.reporting import load_runs
from lustral.reporting.runs import Run
from lustral.reporting.sweeps import DERIVED, find_sweeps
from lustral.reporting.words import fixed_level, full_level
from tests.contracts import SmoothDenoiser, stored_scores


def _edited(run: Run, name: str, change: Callable[[dict[str, Any]], object]) -> Run:
    card = copy.deepcopy(run.card)
    change(card)
    return Run(name, Path(name), card)


def test_one_argument_that_differs_is_swept_in_its_order(make_run) -> None:
    runs = load_runs([make_run(f"tau{tau}", temperature=tau) for tau in (20.0, 5.0, 10.0)])
    (sweep,) = find_sweeps(runs)  # the mean level, which follows, differs as well
    assert sweep.argument == "defence.purifier.levels.temperature"
    assert sweep.name == "temperature"
    assert sweep.values == (5.0, 10.0, 20.0)
    assert [run.name for run in sweep.runs] == ["tau5.0", "tau10.0", "tau20.0"]
    assert sweep.labels == ["5", "10", "20"]


@pytest.mark.parametrize(
    "second",
    [
        {"temperature": 5.0, "t_star": 50},
        {"temperature": 5.0, "eps": "4/255"},
        {"temperature": 5.0, "target": "worst"},
        {"temperature": 5.0, "seed": 1},
        {"temperature": 10.0, "seed": 1},
        {"temperature": 10.0, "target": "worst"},
        {"temperature": 10.0},
        {"t_star": 50},
        {"purified": False, "eps": "4/255"},
    ],
)
def test_two_arguments_or_none_or_a_seed_are_no_sweep(make_run, second: dict[str, Any]) -> None:
    assert find_sweeps(load_runs([make_run("one", temperature=10.0), make_run("other", **second)])) == []


def test_runs_of_several_sweeps_are_told_apart(make_run) -> None:
    runs = load_runs(
        [
            make_run("centre", temperature=10.0),
            make_run("tau", temperature=5.0),
            make_run("eps", temperature=10.0, eps="4/255"),
            make_run("both", temperature=5.0, eps="4/255"),
            make_run("t100"),
            make_run("t50", t_star=50),
            make_run("plain", purified=False),
        ]
    )
    found = {(sweep.name, tuple(run.name for run in sweep.runs)) for sweep in find_sweeps(runs)}
    assert found == {
        ("temperature", ("tau", "centre")),
        ("temperature", ("both", "eps")),
        ("eps", ("eps", "centre")),
        ("eps", ("both", "tau")),
        ("t_star", ("t50", "t100")),
    }


def test_budgets_are_compared_as_numbers_and_named_as_given(make_run) -> None:
    runs = load_runs([make_run("a", eps="8/255"), make_run("b", eps=8 / 255), make_run("c", eps="4/255")])
    (sweep,) = find_sweeps(runs)
    assert sweep.values == (4 / 255, 8 / 255)
    assert sweep.labels == ["4/255", "8/255"]
    assert [run.name for run in sweep.runs] == ["c", "a"]  # of equal runs the first


def test_an_argument_of_defence_and_surrogate_alike_is_one(make_run) -> None:
    (base,) = load_runs([make_run("base")])

    def both(defence: int, surrogate: int) -> Callable[[dict[str, Any]], None]:
        def change(card: dict[str, Any]) -> None:
            card["defence"]["purifier"]["t_star"] = defence
            card["attack"]["surrogate"] = {"class": "DiffPure", "t_star": surrogate}

        return change

    together = [_edited(base, "50", both(50, 50)), _edited(base, "80", both(80, 80))]
    (sweep,) = find_sweeps(together)
    assert (sweep.argument, sweep.values) == ("defence.purifier.t_star", (50.0, 80.0))
    assert find_sweeps([_edited(base, "50", both(50, 20)), _edited(base, "80", both(80, 30))]) == []
    (sweep,) = find_sweeps([_edited(base, "50", both(50, 20)), _edited(base, "51", both(50, 30))])
    assert sweep.argument == "attack.surrogate.t_star"


def test_levels_with_as_many_more_steps_are_one_sweep(make_run) -> None:
    (base,) = load_runs([make_run("base")])

    def level(t_star: int, steps: int) -> Callable[[dict[str, Any]], None]:
        return lambda card: card["defence"]["purifier"].update(t_star=t_star, num_steps=steps)

    runs = [_edited(base, f"{t}", level(t, t // 10)) for t in (100, 50, 200)]
    (sweep,) = find_sweeps(runs)
    assert (sweep.name, sweep.values) == ("t_star", (50.0, 100.0, 200.0))
    assert find_sweeps([_edited(base, "50", level(50, 5)), _edited(base, "80", level(80, 9))]) == []
    mixed = {
        tuple(each.name for each in sweep.runs) for sweep in find_sweeps([*runs, _edited(base, "m", level(100, 5))])
    }
    assert mixed == {("50", "100", "200"), ("50", "m"), ("m", "100")}


def test_members_of_an_ensemble_are_looked_into(make_run) -> None:
    (base,) = load_runs([make_run("base")])

    def members(steps: int) -> Callable[[dict[str, Any]], None]:
        return lambda card: card["attack"].update(attacks=[{"class": "PGD", "num_steps": steps}])

    (sweep,) = find_sweeps([_edited(base, "a", members(10)), _edited(base, "b", members(40))])
    assert (sweep.argument, sweep.values) == ("attack.attacks.0.num_steps", (10.0, 40.0))


def test_images_and_audits_do_not_matter_and_draws_do(make_run) -> None:
    one, other = load_runs([make_run("one"), make_run("other", t_star=50, indices=range(40))])
    audited = _edited(other, "audited", lambda card: card["protocol"].update(audit_images=64))
    assert len(find_sweeps([one, audited])) == 1
    drawn = _edited(other, "drawn", lambda card: card["protocol"].update(verdict_draws=4))
    assert find_sweeps([one, drawn]) == []


def test_what_purifiers_derive_is_known() -> None:
    """A derived quantity that is not would look like a second argument that differs."""
    gdmp = GDMP(SmoothDenoiser(LinearSchedule()).float(), MSEGuidance("noised", 1), 60, 6, 2, 20.0, "24/255")
    score = EPS(3, 10.0)
    ssni = SSNI(gdmp, SigmoidLevels(5.0, 4.0), stored_scores(gdmp.denoiser, score, [280.0, 310.0]), score)
    diffpure = DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 5)
    heterogeneous = HeterogeneousNoise(diffpure.denoiser, ConstantMask())
    found = [purifier.derived().keys() for purifier in (ssni, diffpure, heterogeneous)]
    assert set().union(*found) == set(DERIVED)


@pytest.mark.parametrize(
    ("purifier", "full", "fixed"),
    [
        ({"class": "DiffPure", "t_star": 80}, 80.0, 80.0),
        ({"class": "GNSP", "rounds": [[30, 30], [50, 50]]}, 30.0, 30.0),
        ({"purifier": {"t_star": 80}, "levels": {"class": "FixedLevels", "share": 0.25}}, 80.0, 20.0),
        ({"purifier": {"t_star": 80}, "levels": {"class": "MeanLevels"}, "mean_level": 41.5}, 80.0, 41.5),
        ({"purifier": {"t_star": 80}, "levels": {"class": "SigmoidLevels"}, "mean_level": 41.5}, 80.0, None),
        ({"class": "Identity"}, None, None),
    ],
)
def test_levels_are_read_off_a_description(purifier: dict, full: float | None, fixed: float | None) -> None:
    defence = json.loads(json.dumps({"purifier": purifier}))
    assert full_level(defence) == full
    assert fixed_level(defence) == fixed
