"""The kernel file of DAD's authors: three numbers."""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from lustral.detectors.kernels import SemanticKernel

_NAMES = {"ep": "eps", "sigma0": "feature_bandwidth", "sigma": "pixel_bandwidth"}


def load_dad_kernel(features: nn.Module, file: str) -> SemanticKernel:
    """The semantic kernel of ``{model}_mmd_parameters.pth`` (use as a ``class_path``).

    The file holds the numbers themselves, not what was trained: eps, s0, and s = sigma_raw^2.

    Args:
        features: the frozen network that the numbers were trained on (`lustral.networks.Penultimate`); the file does
            not say which.
        file: a dict of the tensors ``ep``, ``sigma0`` and ``sigma``, of one element each.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else, or a number is out of its range.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no kernel file {path} (looked in {Path.cwd()}): name another.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}): copy or download it again."
        ) from error
    if not isinstance(found, dict) or found.keys() != _NAMES.keys():
        held = ", ".join(map(str, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f"{path} should hold the tensors ep, sigma0 and sigma, and nothing else; it holds {held}.")
    numbers: dict[str, float] = {}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.numel() != 1 or not tensor.isfinite().all():
            raise ValueError(f"{name} in {path} is no tensor of one finite number: copy or download it again.")
        numbers[_NAMES[name]] = float(tensor.double())
    return SemanticKernel(features, numbers["eps"], numbers["feature_bandwidth"], numbers["pixel_bandwidth"])
