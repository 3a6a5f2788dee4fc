"""The command line of the import: what it takes, and the sentence for what it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lustral.networks.importing import FORMATS
from lustral.networks.importing.command import import_weights, option_names, run_command
from lustral.networks.weights import read_weights
from tests.lustral.importing.song_reference import make
from tests.lustral.importing.test_import_consistency_jax import NET, tree
from tests.lustral.importing.test_import_consistency_jax import write as write_flax
from tests.lustral.importing.test_import_score_sde import DDPMPP, checkpoint
from tests.lustral.importing.test_import_score_sde import write as write_score_sde


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_score_sde(tmp_path, checkpoint(make(DDPMPP), make(DDPMPP, seed=1)))


def _words(form: str, source: Path, *options: str) -> list[str]:
    output = source.with_name("weights.safetensors")
    return ["--format", form, "--source", str(source), "--output", str(output), *options]


def test_options_may_come_in_several_groups(tmp_path: Path) -> None:
    source = write_flax(tmp_path, tree(make(NET)))
    options = ["--set", "image_size=8", "--set", "attention_sizes=[4]", "preconditioning=edm"]
    assert run_command(_words("consistency-jax", source, *options)) == 0
    record, _ = read_weights(tmp_path / "weights.safetensors")
    built = record["arguments"]
    assert (built["image_size"], built["attention_sizes"], built["preconditioning"]) == (8, [4], "edm")


@pytest.mark.parametrize("options", [["--set", "image_size=8", "image_size=8"], ["--set", "a=1", "--set", "a=2"]])
def test_an_option_is_given_once(options: list[str], source: Path) -> None:
    with pytest.raises(ValueError, match=r"--set gives (image_size|a) more than once"):
        run_command(_words("score-sde", source, *options))


WHOLE = [
    (form, option)
    for form in FORMATS
    for option in option_names(FORMATS[form])
    if option in ("image_size", "head_width", "num_heads")
]


def _needed(form: str) -> list[str]:
    """Its required options, so that another one can be asked about."""
    if form == "timm":
        return ["name=resnet18"]
    return ["preconditioning=edm"] if "preconditioning" in option_names(FORMATS[form], required=True) else []


@pytest.mark.parametrize("value", ["abc", "3.5", "-8", "0", "True", "[8]", "{[]:1}"])
@pytest.mark.parametrize(("form", "option"), WHOLE)
def test_whole_numbers_are_asked_for_in_a_sentence(form: str, option: str, value: str, source: Path) -> None:
    with pytest.raises(ValueError, match=rf"^--set {option} takes a whole number from 1 on, not .*\.$"):
        run_command(_words(form, source, "--set", f"{option}={value}", *_needed(form)))


def test_every_format_with_a_size_is_asked() -> None:
    assert {form for form, option in WHOLE if option == "image_size"} == {
        *("guided-diffusion", "improved-diffusion", "ddpm", "score-sde", "consistency-jax"),
        *("consistency-models", "timm", "dad-denoiser"),
    }


@pytest.mark.parametrize("value", ["16", "abc", "[16,0]", "[16,8.0]", "[[16]]"])
def test_lists_of_whole_numbers_too(value: str, source: Path) -> None:
    with pytest.raises(ValueError, match=r"^--set attention_sizes takes a list of whole numbers .*\[16,8\], not .*\.$"):
        run_command(_words("consistency-jax", source, "--set", f"attention_sizes={value}", "preconditioning=edm"))


@pytest.mark.parametrize("option", ["form", "source", "output"])
def test_options_do_not_meet_the_command_s_own_names(option: str, source: Path) -> None:
    with pytest.raises(ValueError, match=f"score-sde has no option '{option}'"):
        run_command(_words("score-sde", source, "--set", f"{option}=x"))


def test_neither_the_source_nor_another_file_is_written_over(tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    torch.save({"fc.weight": torch.ones(1)}, source)
    before, link = source.read_bytes(), tmp_path / "link.safetensors"
    link.symlink_to(source)
    for output in (source, tmp_path / "none" / ".." / source.name, link):
        with pytest.raises(ValueError, match="--output is the source itself"):
            import_weights("robustbench-wrn", source, output)
    other = tmp_path / "other.safetensors"
    other.write_text("a day's work")
    with pytest.raises(
        ValueError, match=r"other\.safetensors is there already: move it away or choose another --output"
    ):
        import_weights("robustbench-wrn", source, other)
    assert (source.read_bytes(), other.read_text()) == (before, "a day's work")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import"], "cli.py import: the following arguments are required: --format, --source, --output"),
        (["import", "--format", "edm", "--source"], "argument --source: expected one argument"),
        (["import", *_words("edm", Path("no.pkl")), "--fromat", "x"], "unrecognized arguments: --fromat x"),
        (["report"], "cli.py report: the following arguments are required: RUN_DIR"),
        (["report", "runs", "--format", "pdf"], "argument --format: invalid choice: 'pdf'"),
        (["report", "runs", "--fromat", "csv"], "cli.py report: unrecognized arguments: --fromat csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_get_one_sentence(
    words: list[str], told: str, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cli.py")
    assert told in line
    assert line.endswith(f"see python cli.py {words[0]} --help.")


def test_an_output_that_cannot_be_written_is_told(
    source: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "--format", "score-sde", "--source", source, "--set", "image_size=8", "sde=vp"]
    assert cli(*words, "--output", source / "weights.safetensors") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


def test_the_help_warns_of_files_that_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(["--help"])
    assert stopped.value.code == 0
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "never sub-VP or discrete-time" in told["score-sde"]
    assert "Standard alone; other models of the zoo normalise in their code" in told["robustbench-wrn"]
    assert "others with preconditioning=linear or cosine" in told["guided-diffusion"]
    assert "with label=N or label=unconditional" in told["consistency-models"]
    assert "(preconditioning=consistency), and their teacher (preconditioning=edm)" in told["consistency-jax"]
