"""Every command of the README runs (shrunk), apart from the two make targets that run everything."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lustral.networks import PreActResNet, TimmClassifier, save_network
from lustral.networks.importing import FORMATS, wide_resnets
from lustral.networks.importing.robustbench import CIFAR10
from lustral.tables import Choice
from tests.cli.evaluations import FASTEST, FASTEST_ATTACK
from tests.cli.shrunk import attack
from tests.contracts import images
from tests.datamodules.fixtures import write_cifar10, write_image_folder
from tests.lustral.importing.classifier_originals import Original, deepmind_preact_resnet, trades_wide_resnet
from tests.lustral.importing.song_reference import make
from tests.lustral.importing.test_import_score_sde import DDPMPP, checkpoint

pytestmark = pytest.mark.usefixtures("brief_check")
README = Path("README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line.partition("#")[0].strip() for line in LINES if line.startswith("python cli.py")]
TRAINING = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
RESNET18 = {"width": 4, "shortcut": "same", "activation": "silu"}
SHRUNK_UNET = [
    *("--model.purifier.denoiser.base_channels", "8", "--model.purifier.denoiser.multipliers", "[1,2]"),
    *("--model.purifier.denoiser.blocks", "1"),
    *("--model.purifier.t_star", "10", "--model.purifier.num_steps", "2"),
]
OTHERS = ("make ", "pip install", ".venv/bin/", "git clone", "cd ", "srun ", "#", "tensorboard ")


def test_the_readme_has_commands_of_every_kind() -> None:
    kinds = {command.split()[2] for command in COMMANDS}
    assert {"fit", "test", "report"} <= kinds
    assert "make demo" in README
    assert "make test" in README


def test_nothing_in_the_readme_escapes_these_tests() -> None:
    strange = [line for line in LINES if line.strip() and not line.startswith(("python cli.py", " ", *OTHERS))]
    assert strange == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(
    command: str,
    cli: Callable[..., int],
    tmp_path: Path,
    digit_weights: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(command)[2:]
    if words[0] == "import" and "--source" in words:
        source, output = words[words.index("--source") + 1], words[words.index("--output") + 1]
        words[words.index(source)] = str(_published(words[words.index("--format") + 1], tmp_path / source))
        words[words.index(output)] = str(tmp_path / output)
        monkeypatch.setitem(wide_resnets.SIZES, "robustbench-wrn", (16, 2))  # of the small file
        assert cli(*words) == 0
        assert (tmp_path / output).is_file()
    elif words[0] == "report":
        runs = [tmp_path / Path(word).name for word in words if word.startswith("runs/eval/")]
        for run in runs:
            recipe = f"configs/eval/{run.name}.yaml"
            assert cli(*_shrunk(["test", "-c", recipe], run, digit_weights, tmp_path)) == 0
        words = [str(tmp_path / Path(word).name) if word.startswith("runs/") else word for word in words]
        assert cli(*words) == 0
    elif words[0] == "table":  # whose rows are run in test_table_rows.py
        words = [word.replace("$SLURM_ARRAY_TASK_ID", "3") for word in words]
        own = words[: words.index("--")] if "--" in words else words
        assert cli(*own, *([] if "--list" in own else ["--list"]), *words[len(own) :]) == 0
    elif any(word.endswith("help") for word in words):
        with pytest.raises(SystemExit) as stopped:
            cli(*words)
        assert stopped.value.code == 0
    else:
        if any("ssni" in word for word in words):  # the command before it makes the reference
            before = ["validate", "-c", "configs/reference/digits_eps.yaml"]
            assert cli(*_shrunk(before, tmp_path / "reference", digit_weights, tmp_path)) == 0
        assert cli(*_shrunk(words, tmp_path / "run", digit_weights, tmp_path)) == 0


def test_the_readme_lists_every_format() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE) != []
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(FORMATS)


def _published(form: str, path: Path) -> Path:
    """A small file in the form of a published one."""
    if form == "score-sde":
        content = checkpoint(make(DDPMPP), make(DDPMPP, seed=1))
    elif form == "timm":
        content = {"state_dict": timm.create_model("resnet18", num_classes=10).state_dict()}
    elif form == "robustbench":
        original = Original()
        deepmind_preact_resnet(original, images(1, (3, 32, 32)))
        content = original.state
    else:
        original = Original(True)
        trades_wide_resnet(original, images(1, (3, 32, 32)))
        content = original.state
    torch.save(content, path)
    return path


def _shrunk(words: list[str], run: Path, weights: dict[str, Path], tmp_path: Path) -> list[str]:
    """The same command, small: fewer images and steps, one process, a folder of its own."""
    words = [word for pair in _pairs(words) for word in pair if pair[0] != "--trainer.default_root_dir"]
    words = [word for pair in _pairs(words) for word in pair if "configs/trainer/" not in pair[-1]]
    words += ["--trainer.default_root_dir", str(run), "--trainer.accelerator", "cpu"]
    if words[0] == "fit":
        return words + TRAINING
    if any("configs/quality" in word for word in words):
        words = [word for pair in _pairs(words) for word in pair if pair[0] != "--model.denoiser.weights"]
        words += ["--allow_untrained=true", "--data.num_test", "20", "--trainer.callbacks.num_samples", "20"]
        return [*words, "--trainer.callbacks.classifier.weights", str(weights["classifier"])]
    if words[0] == "validate":
        return [*words, "--model.denoiser.weights", str(weights["denoiser"])]
    if any("image_folder" in word or "rebuffi" in word for word in words):
        words += [*FASTEST, *attack(_attack_of(words), tmp_path / "attack", **FASTEST_ATTACK)]
        words += ["--data.num_workers", "0"]
        if any("image_folder" in word for word in words):
            return words + _mine(tmp_path, purified=any("diffpure" in word for word in words))
        network = PreActResNet(**RESNET18, mean=CIFAR10[0], std=CIFAR10[1])
        words += ["--model.classifier.weights", str(save_network(network, tmp_path / "w.safetensors"))]
        words += ["--model.classifier.width", "4", "--data.root", str(write_cifar10(tmp_path / "data", 20, 20))]
        return [*words, "--data.test_subset", "null"]
    words += FASTEST
    if "--model.attack" not in words:
        words += attack(_attack_of(words), tmp_path / "attack", **FASTEST_ATTACK)
    elif any("square" in word for word in words):
        words += ["--model.attack.num_queries", "4", "--model.attack.eot", "2"]
    if any("cifar10" in word for word in words):
        subset = tmp_path / "subset.txt"
        subset.write_text("7\n3\n11\n0\n")
        words += ["--data.root", str(write_cifar10(tmp_path / "data", n=20, num_test=20)), "--data.num_workers", "0"]
        words += ["--data.test_subset", str(subset)]
        words += ["--model.classifier.depth", "10", "--model.classifier.width", "1"]
        return words + SHRUNK_UNET
    words += ["--model.classifier.weights", str(weights["classifier"])]
    if any("ssni" in word for word in words):
        inner = "--model.purifier.purifier"
        words += [f"{inner}.denoiser.weights", str(weights["denoiser"]), f"{inner}.num_steps", "2"]
        words += ["--model.purifier.reference.file", str(tmp_path / "reference" / "reference.json")]
    elif any("diffpure" in word for word in words):
        words += ["--model.purifier.denoiser.weights", str(weights["denoiser"]), "--model.purifier.num_steps", "2"]
    elif any("gnsp" in word for word in words):
        words += ["--model.purifier.denoiser.weights", str(weights["denoiser"])]
        words += ["--model.purifier.rounds", "[[30,1],[50,1]]"]
    return words


def _attack_of(words: list[str]) -> dict[str, Any]:
    """The attack of the recipe that is named."""
    return Choice(Path(words[words.index("-c") + 1])).parts()["attack"]


def _mine(tmp_path: Path, purified: bool) -> list[str]:
    """Somebody's images and classifier."""
    root = write_image_folder(tmp_path / "mine", [str(label) for label in range(10)], n=1)
    weights = save_network(TimmClassifier("resnet10t", 10, 32), tmp_path / "mine.safetensors")
    small = ["--data.root", str(root), "--model.classifier.weights", str(weights)]
    return small + (["--allow_untrained=true", *SHRUNK_UNET] if purified else [])


def _pairs(words: list[str]) -> list[list[str]]:
    """Words grouped as an option with its value, or alone."""
    pairs: list[list[str]] = []
    for word in words:
        option = pairs and pairs[-1][0].startswith("-") and len(pairs[-1]) == 1 and "=" not in pairs[-1][0]
        if option and not word.startswith("-"):
            pairs[-1].append(word)
        else:
            pairs.append([word])
    return pairs
