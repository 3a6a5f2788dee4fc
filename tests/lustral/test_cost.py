"""Network calls are counted as they are made: forward and backward, recomputation included, padding left out."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lustral.attacks import PGD, Cases
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Defence, Evaluator, Protocol
from lustral.evaluation.cost import Cost, total_cost
from lustral.networks import SongUNetDenoiser, UNetDenoiser, WideResNet
from lustral.noise import NoiseStream
from lustral.purifiers import SSNI, DiffPure, Identity, Purifier, SigmoidLevels
from lustral.rows import Runtime
from lustral.threat import ThreatModel
from tests.contracts import SmoothDenoiser, ToyClassifier, cases, images, stored_scores
from tests.toys.routed import RoutedGroups


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("kept", [True, False], ids=["graphs kept", "run again"])
@pytest.mark.parametrize("network", ["unet", "song"])
def test_calls_of_an_evaluation(network: str, kept: bool, rows: int) -> None:
    steps, iterations, eot, draws, count = 3, 2, 2, 3, 5
    if network == "unet":
        denoiser = UNetDenoiser(8, 1, (8, 16), 1, (False, False), norm_groups=4, preconditioning="vp")
    else:
        denoiser = SongUNetDenoiser(8, 1, 8, (1, 2), 1, ())
    purifier = DiffPure(denoiser, EulerMaruyama(), 30, steps)
    attack = PGD(iterations, eot=eot, selection="last")
    defence, threat = Defence(WideResNet(10, 1, 3, 1, 8), purifier), ThreatModel("linf", 0.1)
    budget = torch.inf if kept else 0.0
    evaluator = Evaluator(defence, attack, threat, Protocol(draws, 0), 0, rows, graph_budget=budget)
    cases = Cases(images(count, (1, 8, 8)), torch.arange(count) % 3, torch.arange(count))
    evaluator.evaluate(cases, torch.zeros(count, dtype=torch.bool))
    gradients = count * iterations * eot
    judged = count * 2 * draws
    assert evaluator.cost.calls == {
        "classifier_forward": gradients + judged,
        "classifier_backward": gradients,
        "denoiser_forward": steps * (gradients * (1 if kept else 2) + judged),
        "denoiser_backward": steps * gradients,
    }
    assert evaluator.cost.images == count


# The defence's own cost --------------------------------------------------------------------------------------

STEPS, DRAWS = 3, 3


def _diffpure() -> Purifier:
    return DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 30, STEPS)


def _evaluator(purifier: Purifier, rows: int, draws: int = DRAWS) -> Evaluator:
    attack = PGD(1, eot=1, selection="last")
    defence, threat = Defence(ToyClassifier(), purifier), ThreatModel("linf", 0.1)
    return Evaluator(defence, attack, threat, Protocol(draws, 0), 0, rows)


def _evaluate(evaluator: Evaluator, chosen: Cases) -> Evaluator:
    evaluator.evaluate(chosen, torch.zeros(len(chosen), dtype=torch.bool))
    return evaluator


def _cases(batch: int) -> Cases:
    return Cases(images(batch), torch.arange(batch) % 3, torch.arange(batch))


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("starts", [[[7]], [[5, 2]], [[2], [1, 4], []]], ids=str)
def test_one_purification_costs_its_own_calls(starts: list[list[int]], rows: int) -> None:
    """Of seven images in batches, of several processes or starts, one of which found nothing to do: no call is nearly
    full, and none of that shows."""
    sizes = [size for start in starts for size in start]
    lines, batches = [], iter(_cases(7).select(part) for part in torch.arange(7).split(sizes))
    for start in starts:
        evaluator = _evaluator(_diffpure(), rows)
        for _ in start:
            _evaluate(evaluator, next(batches))
        lines.append(json.loads(json.dumps(evaluator.cost.line())))
    found = total_cost(lines)
    assert found["defence"]["calls_per_image"] == {"classifier_forward": 1.0, "denoiser_forward": STEPS}
    assert found["defence"]["network_calls_per_image"] == 1 + STEPS
    assert found["defence"]["draws"] == 7 * DRAWS
    assert 0 < found["defence"]["seconds_per_image"] < found["seconds_per_image"]
    assert 0 < found["defence"]["peak_memory_mib"] < found["peak_memory_mib"]


@pytest.mark.parametrize("count", [1, 5, 16])
def test_seconds_are_those_of_full_calls(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a call moves by a second, however many of its rows only pad."""
    evaluator, clock = _evaluator(_diffpure(), rows := 16), [0.0]
    for network in (evaluator.defence.classifier, evaluator.defence.purifier.denoiser):
        network.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1.0))
    monkeypatch.setattr("lustral.evaluation.cost.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    line = _evaluate(evaluator, _cases(count)).cost.line()
    assert total_cost([line])["defence"]["seconds_per_image"] == pytest.approx((1 + STEPS) / rows)


def test_a_deterministic_defence_is_asked_once() -> None:
    evaluator = _evaluate(_evaluator(Identity(), 4), _cases(5))
    found = total_cost([evaluator.cost.line()])["defence"]
    assert found["calls_per_image"] == {"classifier_forward": 1.0}
    assert found["draws"] == 5


@pytest.mark.parametrize("kind", ["ragged", "groups"])
def test_purifiers_that_cut_their_calls_themselves(kind: str) -> None:
    """Against the rows of the same purifications in calls of as many rows as there are, so that nothing pads."""
    denoiser, seen = SmoothDenoiser(VPSchedule()).float(), [0]
    if kind == "ragged":
        score = EPS(2, 10.0)
        reference = stored_scores(denoiser, score, [280.0, 310.0, 400.0])
        purifier = SSNI(DiffPure(denoiser, EulerMaruyama(), 100, 4), SigmoidLevels(5.0, 40.0), reference, score)
    else:
        purifier = RoutedGroups(denoiser, threshold=0.0, std=0.1)
    chosen = cases(7)
    found = total_cost([_evaluate(_evaluator(purifier, 4), chosen).cost.line()])["defence"]
    purifier.runtime = Runtime()
    denoiser.register_forward_hook(lambda module, inputs, output: seen.__setitem__(0, seen[0] + len(inputs[0])))
    noise = NoiseStream(0, chosen.index).fork("verdict", "clean").repeat(DRAWS)
    with torch.no_grad():
        purifier(chosen.images.repeat(DRAWS, 1, 1, 1), noise)
    assert seen[0] >= 7 * DRAWS
    assert found["draws"] == 7 * DRAWS
    assert found["calls_per_image"] == {"classifier_forward": 1.0, "denoiser_forward": seen[0] / (7 * DRAWS)}


def test_memory_is_of_a_call_and_not_of_a_batch() -> None:
    peaks = [_evaluate(_evaluator(_diffpure(), 4), _cases(count)).cost.defence_peak_memory for count in (1, 3, 9)]
    assert max(peaks) < 1.05 * min(peaks)


@pytest.mark.parametrize("peaks", [(5, 3, 4), (2, 7, 4), (2, 3, 4)])
def test_on_a_gpu_no_peak_hides_another(peaks: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated before the purification, within it, and after it."""
    peak, network, runtime = [0], nn.Identity(), Runtime(4)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])

    def allocate(size: int) -> None:
        peak[0] = max(peak[0], size)

    cost, device = Cost(runtime), torch.device("cuda")
    with cost.measured(4, [("classifier", network)], device):
        allocate(peaks[0])
        with cost.purifying(4, device):
            network(torch.zeros(4, 1))
            allocate(peaks[1])
        allocate(peaks[2])
    assert cost.defence_peak_memory == peaks[1]
    assert cost.peak_memory == max(peaks)


def test_lines_of_older_versions_tell_nothing_of_it() -> None:
    line = _evaluate(_evaluator(_diffpure(), 4), _cases(2)).cost.line()
    old = {name: value for name, value in line.items() if not name.startswith("defence_")}
    assert total_cost([old])["defence"] is None
    assert total_cost([])["defence"] is None
    found = total_cost([old, line])
    assert found["defence"] == total_cost([line])["defence"], "a run that went on with this version"
    assert {**found, "defence": None} == total_cost([old, old]), "and the attack's cost is of all its images"


def test_a_verdict_that_fails_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = _evaluator(_diffpure(), 4)
    _evaluate(evaluator, _cases(2))
    before = evaluator.cost.line()["defence_draws"]
    monkeypatch.setattr(evaluator.engine, "judge", lambda *_: {}["stopped"])
    with pytest.raises(KeyError, match="stopped"):
        _evaluate(evaluator, _cases(3))
    assert evaluator.cost.defence_draws == before
