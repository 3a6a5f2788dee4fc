"""Checkpoints that hold more than tensors: nothing of the rest is made or run."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.inert_pickle import Held
from lustral.networks.importing.inert_torch import read_inert_torch


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it_ran",)


class _Twice:
    """As dill writes a function: what was made by a name is called again, and filled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (_Evil(), "mkdir"), {"name": 1}, iter([1]), iter([("key", 2)])


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_but_tensors_and_containers_is_made(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    transposed = torch.arange(6.0).reshape(2, 3).T
    content = {"model": {"a": transposed, "half": torch.ones(2).half()}, "parameter": nn.Parameter(torch.ones(3))}
    content |= {"evil": _Evil(), "twice": _Twice(), "whole": nn.Linear(2, 2), "type": torch.float32}
    torch.save(content, "c.pt", _use_new_zipfile_serialization=not legacy)
    read = read_inert_torch("c.pt")
    assert torch.equal(read["model"]["a"], transposed)
    assert read["model"]["half"].dtype == torch.float16
    assert read["parameter"].tolist() == [1, 1, 1]
    assert isinstance(read["evil"], Held)
    assert not isinstance(read["whole"], nn.Module)
    assert not Path("it_ran").exists()


def test_scripts_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of scripts
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"no file of torch\.save \(it is a TorchScript archive\)"):
        read_inert_torch(tmp_path / "script.pt")
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut short or no file of torch\.save"):
        read_inert_torch(tmp_path / "cut.pt")


def test_two_sets_of_weights_want_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, path)
    assert read_checkpoint(path, "state_dict_ema")["a"].item() == 1
    with pytest.raises(ValueError, match=r"holds state_dict and state_dict_ema, .* --set key=state_dict_ema"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="no tensors below 'model'; it has state_dict, state_dict_ema"):
        read_checkpoint(path, "model")
