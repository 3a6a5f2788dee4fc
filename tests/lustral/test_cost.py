"""Network calls are counted as they are made: forward and backward, recomputation included, padding left out."""

import pytest
import torch

from lustral.attacks import PGD, Cases
from lustral.diffusion import EulerMaruyama
from lustral.evaluation import Defence, Evaluator, Protocol
from lustral.networks import SongUNetDenoiser, UNetDenoiser, WideResNet
from lustral.purifiers import DiffPure
from lustral.threat import ThreatModel
from tests.contracts import images


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
