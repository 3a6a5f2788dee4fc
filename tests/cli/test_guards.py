"""The traps of LightningCLI and of evaluation: each fails on the stock behaviour and is refused or mended here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lustral.networks import WideResNet, save_network

UNDEFENDED = "configs/eval/digits_undefended.yaml"
DIFFPURE = "configs/eval/digits_diffpure.yaml"


@pytest.fixture
def words(tmp_path: Path, digit_weights: dict[str, Path]) -> list[object]:
    """A small evaluation of the undefended classifier."""
    return [
        *("test", "-c", UNDEFENDED, "--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu"),
        *("--model.classifier.weights", digit_weights["classifier"], "--data.num_test", "3"),
        *("--model.attack", "configs/attack/pgd20.yaml", "--model.attack.num_steps", "2"),
        *("--model.protocol.audit_images", "0", "--model.rows", "4"),
    ]


BAD = [
    (["--model.threat.eps", "8"], "8/255"),
    (["--model.threat.eps", "abc"], "8/255"),
    (["--model.classifier.weights", "nowhere.safetensors"], "no weights file nowhere.safetensors"),
    (["--model.purifier", "lustral.purifiers.DifPure"], "did you mean lustral.purifiers.DiffPure"),
    (["--model.attack.num_stepz", "3"], "did you mean num_steps"),
    (["--data.num_tst", "3"], "did you mean num_test"),
    (["--data.num_test", "100000"], "510"),
    (["--data.image_size", "16"], "data.image_size"),
    (["--trainer.use_distributed_sampler", "true"], "repeated samples"),
    (["--trainer.inference_mode", "true"], "trainer.inference_mode"),
    (["--trainer.precision", "bf16-mixed"], "32-true"),
    (
        ["--model.protocol.target", "best"],
        "model.protocol: Protocol has no option target; its options are",
    ),
    (["--trainer.devicez", "2"], "Trainer has no option devicez; did you mean devices?"),
    (["--model.rows", "0"], "rows"),
    (["-c", "configs/eval/nowhere.yaml"], "nowhere.yaml"),
]


@pytest.mark.parametrize(("extra", "told"), BAD, ids=[" ".join(extra) for extra, _ in BAD])
def test_bad_input_gets_one_sentence(
    extra: list[str], told: str, words: list[object], cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words, *extra) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert not Path(str(words[words.index("--trainer.default_root_dir") + 1])).exists()


def test_help_teaches(cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--help") == 0
    told = capsys.readouterr().out
    for command in ("fit  -c configs/train", "test -c configs/eval", "report", "--model.help"):
        assert command in told
    assert cli() == 1


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("lustral.purifiers.DiffPure", "lustral.purifiers.DifPure", "did you mean lustral.purifiers.DiffPure"),
        ("t_star", "t_stra", "did you mean t_star"),
        ("lustral.diffusion.EulerMaruyama", "lustral.difusion.EulerMaruyama", "no module 'lustral.difusion'"),
        ("class_path:", "class_path: [", "line"),
        (None, "", "is empty"),
    ],
    ids=["class", "option", "module", "syntax", "empty"],
)
def test_a_mistake_in_a_picked_file_names_that_file(
    before: str | None,
    after: str,
    told: str,
    cli: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stock jsonargparse reports a "config file loop" instead."""
    shutil.copytree("configs", tmp_path / "configs")
    picked = tmp_path / "configs" / "purifier" / "digits_diffpure.yaml"
    picked.write_text(after if before is None else picked.read_text().replace(before, after))
    assert cli("test", "-c", tmp_path / DIFFPURE, "--trainer.default_root_dir", tmp_path / "run") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(picked) in error
    assert told in error


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--trainer.limit_test_batches", "1"], "--data.num_test"),
        (["--trainer.limit_test_batches", "0.5"], "--data.num_test"),
        (["--trainer.fast_dev_run", "true"], "--data.num_test"),
        (["--seed_everything", "3"], "--model.seed"),
        (["--seed", "3"], "--model.seed"),
        (["--model.attack", "configs/attack/pgd20_eot8.yaml"], None),
        (["--model.threat.norm", "l3"], "'linf', 'l2'"),
    ],
)
def test_options_that_would_silently_do_something_else_are_refused(
    extra: list[str], told: str | None, words: list[object], cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words, *extra) == (0 if told is None else 1)
    if told is not None:
        assert told in capsys.readouterr().err


def test_a_file_chosen_on_the_command_line_does_not_inherit_options(
    words: list[object], cli: Callable[..., int], tmp_path: Path
) -> None:
    """The parser merges such a file into the recipe's instead of replacing it: its surrogate and draws would stay."""
    recipe = tmp_path / "recipe.yaml"
    text = Path(UNDEFENDED).read_text().replace("../", f"{Path('configs').resolve()}/")
    recipe.write_text(text.replace("apgd_t.yaml", "surrogate_classifier.yaml"))
    plain = [*words[:2], recipe, *words[3:]]
    assert cli(*plain) == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert (card["attack"]["num_steps"], card["attack"]["surrogate"]) == (2, None)
    assert card["attack"]["selection"] == "best"


def test_a_base_recipe_says_what_must_be_chosen(cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("test", "-c", "configs/eval/digits.yaml") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.endswith("RobustnessEvaluation must be given purifier: --model.purifier configs/purifier/FILE.yaml.")


def test_unknown_subcommands_and_options_are_refused(cli: Callable[..., int], words: list[object]) -> None:
    assert cli("frobnicate") == 1
    assert cli(*words, "--modle.rows", "3") == 1
    assert cli("report", "/nowhere/at/all") == 1


def test_weights_of_another_network_are_refused(
    words: list[object],
    cli: Callable[..., int],
    digit_weights: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert cli(*words, "--model.classifier.weights", digit_weights["denoiser"]) == 1
    assert "no Classifier" in capsys.readouterr().err
    three = save_network(WideResNet(10, 1, 3, 1, 8), tmp_path / "three.safetensors")
    assert cli(*words, "--model.classifier.weights", three) == 1
    assert "3 classes" in capsys.readouterr().err
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(digit_weights["classifier"].read_bytes()[:5000])
    assert cli(*words, "--model.classifier.weights", truncated) == 1
    assert "damaged" in capsys.readouterr().err
    network = WideResNet(10, 1, 10, 1, 8)
    with torch.no_grad():
        network.head.weight[0, 0] = torch.nan
    assert cli(*words, "--model.classifier.weights", save_network(network, tmp_path / "nan.safetensors")) == 1
    assert "NaN" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_written_is_told_before_any_work(
    words: list[object], cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")  # a folder below a file: unwritable for root too
    assert cli(*words, "--trainer.default_root_dir", tmp_path / "file" / "run") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_records_of_another_run_are_refused_and_kept(
    words: list[object], cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words) == 0
    before = _files(tmp_path / "run")
    assert cli(*words, "--model.attack.num_steps", "3") == 1
    assert "attack.num_steps" in capsys.readouterr().err
    assert _files(tmp_path / "run") == before  # no config, no provenance, nothing for TensorBoard


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_ends_with_its_card_on_the_screen_however_it_came_by_its_records(
    words: list[object], cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli(*words) == 0
        told = capsys.readouterr()
        for word in (
            "clean",
            "under attack",
            "n = 3",
            "unaudited",
            "card.json",
            f"python cli.py report {tmp_path / 'run'}",
        ):
            assert word in told.out
    assert "3 images have a record already" in told.err


@pytest.mark.parametrize("option", ["fast_dev_run=true", "max_epochs=0", "max_steps=0", "limit_train_batches=0"])
def test_a_training_without_a_step_leaves_the_weights_alone(
    option: str, cli: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "weights.safetensors").write_text("trained")
    words = ("--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu", f"--trainer.{option}")
    assert cli("fit", "-c", "configs/train/digits_classifier.yaml", *words) == 0
    assert (tmp_path / "weights.safetensors").read_text() == "trained"


@pytest.mark.parametrize(
    ("command", "recipe", "option"),
    [
        ("predict", UNDEFENDED, "limit_predict_batches=1"),
        ("predict", UNDEFENDED, "fast_dev_run=true"),
        ("validate", "configs/reference/digits_eps.yaml", "limit_val_batches=1"),
        ("validate", "configs/reference/digits_eps.yaml", "overfit_batches=1"),
    ],
)
def test_a_part_is_not_written_as_if_it_were_the_whole(
    command: str,
    recipe: str,
    option: str,
    cli: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert cli(command, "-c", recipe, "--trainer.default_root_dir", run, f"--trainer.{option}") == 1
    assert "--data.num_" in capsys.readouterr().err
    assert not run.exists()


UNTRAINED = "{class_path: lustral.networks.WideResNet, init_args: {depth: 10, width: 1, channels: 1, image_size: 8}}"


def test_random_weights_are_not_scored_unless_asked_for(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock `test` without weights scores random ones."""
    recipe = tmp_path / "untrained.yaml"
    recipe.write_text(
        Path(UNDEFENDED)
        .read_text()
        .replace("../", f"{Path('configs').resolve()}/")
        .replace(f"{Path('configs').resolve()}/classifier/digits.yaml", UNTRAINED)
    )
    words = ("test", "-c", recipe, "--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu")
    words += ("--data.num_test", "3", "--model.attack", "configs/attack/pgd20.yaml", "--model.attack.num_steps", "2")
    words += ("--model.protocol.audit_images", "0")
    assert cli(*words) == 1
    assert "--allow_untrained" in capsys.readouterr().err
    assert cli(*words, "--allow_untrained=true") == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["status"].startswith("suspect")
    assert "random" in card["status"]


def test_a_class_chosen_on_the_command_line_does_not_inherit_arguments(
    words: list[object], cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock jsonargparse keeps arguments of the old class that the new one has too, here the weights of another."""
    assert cli(*words[:-2], "--model.attack", "lustral.attacks.RandomDirections") == 0
    plain = [w for w in words if "weights" not in str(w) and not str(w).endswith(".safetensors")]
    small = ("--model.classifier.depth", "10", "--model.classifier.width", "1", "--model.classifier.channels", "1")
    small += ("--model.classifier.image_size", "8")
    assert cli(*plain, "--model.classifier", "lustral.networks.WideResNet", *small) == 1
    assert "--allow_untrained" in capsys.readouterr().err


def test_samples_that_meet_nan_are_broken_told_and_change_the_exit_code(
    words: list[object], cli: Callable[..., int], tmp_path: Path
) -> None:
    """Finite weights whose logits overflow: nothing is wrong with the file, and every sample fails."""
    network = WideResNet(10, 1, 10, 1, 8)
    with torch.no_grad():
        network.head.weight.fill_(3e38)
    overflowing = save_network(network, tmp_path / "overflowing.safetensors")
    assert cli(*words, "--model.classifier.weights", overflowing) == 3
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["status"].startswith("suspect")
    assert len(card["audit"]["failed_samples"]) == 3
    assert card["verdicts"]["majority"]["robust"]["value"] == 0


def test_training_modules_are_not_tested_with_random_weights_either(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "configs/train/digits_classifier.yaml"
    assert cli("test", "-c", recipe, "--trainer.default_root_dir", tmp_path) == 1
    assert "--allow_untrained" in capsys.readouterr().err


def test_an_evaluation_cannot_be_fitted(
    words: list[object], cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("fit", *words[1:]) == 1
    assert "cli.py test" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_hyper_parameters_in_a_checkpoint_do_not_overrule_the_config(cli: Callable[..., int], tmp_path: Path) -> None:
    """Stock LightningCLI merges ``hyper_parameters`` of --ckpt_path over YAML and command line."""
    recipe = "configs/train/digits_classifier.yaml"
    fast = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1")
    run = tmp_path / "run"
    assert cli("fit", "-c", recipe, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu", *fast) == 0
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] = {"label_smoothing": 0.5, "lr": 123.0}
    torch.save(content, tmp_path / "poisoned.ckpt")
    code = cli(
        *("test", "-c", recipe, "--ckpt_path", tmp_path / "poisoned.ckpt", "--data.num_test", "3"),
        *("--trainer.default_root_dir", tmp_path / "test", "--trainer.accelerator", "cpu"),
    )
    assert code == 0
    used = (tmp_path / "test" / "config_test.yaml").read_text()
    assert "123.0" not in used
    assert "label_smoothing: 0.0" in used


def test_a_layer_that_chooses_another_class_takes_nothing_over(
    words: list[object], cli: Callable[..., int], digit_weights: dict[str, Path], tmp_path: Path
) -> None:
    """Stock jsonargparse hands the first class's arguments to the second."""
    layer = tmp_path / "layer.yaml"
    weights = {"weights": str(digit_weights["denoiser"])}
    denoiser = {"class_path": "lustral.networks.load_denoiser", "init_args": weights}
    langevin = {"class_path": "lustral.purifiers.LangevinPurifier", "init_args": {"denoiser": denoiser, "t": 20.0}}
    layer.write_text(json.dumps({"model": {"init_args": {"purifier": langevin}}}))
    first = tmp_path / "first.yaml"
    first.write_text(json.dumps({"model": {"init_args": {"purifier": {"init_args": {"num_steps": 3}}}}}))
    diffpure = [*words[:2], DIFFPURE, "-c", first, "-c", layer, *words[3:]]
    assert cli(*diffpure, "--model.attack.eot", "1") == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["defence"]["purifier"]["class"] == "LangevinPurifier"
    assert card["defence"]["purifier"]["num_steps"] == 10


def test_layers_that_agree_are_accepted(words: list[object], cli: Callable[..., int], tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("model:\n  init_args:\n    seed: 5\n")
    assert cli(*words, "-c", layer) == 0
    assert json.loads((tmp_path / "run" / "card.json").read_text())["seed"] == 5


def test_a_second_run_in_one_folder_goes_on_instead_of_being_refused(
    words: list[object], cli: Callable[..., int], tmp_path: Path
) -> None:
    """Stock SaveConfigCallback refuses a folder that holds a config."""
    assert cli(*words) == 0
    first = json.loads((tmp_path / "run" / "card.json").read_text())
    assert cli(*words, "--data.num_test", "5") == 0
    second = json.loads((tmp_path / "run" / "card.json").read_text())
    assert (first["n"], second["n"]) == (3, 5)
    assert len(list((tmp_path / "run" / "records").glob("*.jsonl"))) == 2
    assert first["fingerprint"] == second["fingerprint"]


def test_slurm_requeues_trainings_but_not_evaluations(
    words: list[object], cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cli as front_door

    seen = []

    class Slurm:
        @staticmethod
        def detect() -> bool:
            return True

        def __init__(self, auto_requeue: bool) -> None:
            seen.append(auto_requeue)
            raise ValueError("far enough")

    monkeypatch.setattr(front_door, "SLURMEnvironment", Slurm)
    assert cli(*words) == 1
    assert seen == [False]


def test_a_defence_that_is_not_keyed_is_refused_before_it_claims_a_folder(
    words: list[object], cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words, "--model.purifier", "tests.lustral.unkeyed.GlobalNoise") == 1
    assert "error: GlobalNoise before WideResNet draws from the global generator of torch" in capsys.readouterr().err
    assert not (tmp_path / "run" / "records").exists()
    assert cli(*words) == 0
    assert cli(*words, "--model.purifier", "tests.lustral.unkeyed.GlobalNoise") == 1
    assert "holds records of another evaluation" in capsys.readouterr().err
