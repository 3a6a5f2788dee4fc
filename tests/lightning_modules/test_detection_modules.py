"""What evaluations and calibrations of detectors say of networks that nobody trained."""

from pathlib import Path

import pytest

from lightning_modules import DetectionEvaluation, DetectorCalibration
from lustral.attacks import PGD
from lustral.detectors import DeepKernel, GroupMMD, save_kernel
from lustral.networks import ConvFeatures
from lustral.threat import ThreatModel
from tests.contracts import ToyClassifier


def _kernel(weights: str | None = None) -> DeepKernel:
    return DeepKernel(ConvFeatures(1, 4, (2,), 3), 0.1, 2.0, 5.0, weights=weights)


@pytest.mark.parametrize("trained", [True, False])
def test_the_network_of_a_deep_kernel_is_in_the_kernel_s_file(trained: bool, tmp_path: Path) -> None:
    file = str(save_kernel(_kernel(), tmp_path / "kernel.safetensors")) if trained else None
    calibration = DetectorCalibration(GroupMMD(_kernel(file)), group_size=4)
    assert calibration.untrained() == ([] if trained else ["kernel.network"])
    classifier, threat = ToyClassifier(), ThreatModel("linf", 0.1)
    evaluation = DetectionEvaluation(classifier, PGD(1), threat, group_detectors={"deep": GroupMMD(_kernel(file))})
    found = [name for name in evaluation.untrained() if "network" in name]
    assert found == ([] if trained else ["detector deep.kernel.network"])
