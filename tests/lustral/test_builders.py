"""The networks that weights files may name: this package's own, each announced once, and nobody else's."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lustral.networks as networks
from lustral.networks import WideResNet, load_network
from lustral.networks.builders import announced, builders

FOLDER = Path(networks.__file__).parent


def _announced() -> set[str]:
    """The classes that bear the decorator in the source, imported or not."""
    classes = [
        node
        for path in FOLDER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    return {node.name for node in classes if any(ast.unparse(d) == "announced" for d in node.decorator_list)}


def test_every_announced_network_is_handed_on() -> None:
    """Else a file could name it in a process that happens to have imported its module, and not in another."""
    assert _announced() <= set(networks.__all__), "add its name to lustral/networks/__init__.py"
    assert builders() == {name: getattr(networks, name) for name in _announced()}


def test_the_list_is_complete_in_a_process_that_imports_nothing_else() -> None:
    source = "from lustral.networks.builders import builders; print(*builders())"
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) == _announced()


def test_a_class_from_elsewhere_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^Foreign is of .*test_builders, and .*classes of lustral\.networks only: .*\.$"
    ):

        @announced
        class Foreign(torch.nn.Module):
            pass

    assert "Foreign" not in builders()


@pytest.mark.parametrize("module", ["lustral.networks", "lustral.networks_of_mine.net", "lustral", "__main__"])
def test_a_package_that_only_sounds_like_ours_is_refused(module: str) -> None:
    with pytest.raises(ValueError, match="classes of lustral"):
        announced(type("Foreign", (torch.nn.Module,), {"__module__": module}))


def test_a_name_is_announced_once() -> None:
    twin = type("WideResNet", (torch.nn.Module,), {"__module__": "lustral.networks.other"})
    for network in (twin, WideResNet):
        with pytest.raises(
            ValueError, match=r"already name a WideResNet, of lustral\.networks\.wide_resnet: choose ano"
        ):
            announced(network)
    assert builders()["WideResNet"] is WideResNet


def test_a_subclass_is_not_announced_with_its_base(tmp_path: Path) -> None:
    class Mine(WideResNet):
        def __init__(self) -> None:
            raise AssertionError("opening a file ran this")

    assert Mine not in builders().values()
    path = tmp_path / "weights.safetensors"
    record = {"schema": 1, "builder": "Mine", "arguments": {}, "notes": {}}
    save_file({"weight": torch.ones(2)}, path, metadata={"lustral": json.dumps(record)})
    with pytest.raises(ValueError, match=r"names the network 'Mine'; known are ADMDenoiser, .*WideResNet\."):
        load_network(path)


def test_the_list_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        builders()["Mine"] = torch.nn.Linear  # type: ignore[index]
