"""Which runs are found, what is refused, and how runs are compared."""

import json
import shutil

import pytest

from lustral.evaluation import compare
from lustral.reporting import load_runs, report
from lustral.reporting.paired import paired_comparisons
from lustral.reporting.words import attack_in_short, component_in_short, defence_in_short


def test_a_folder_of_runs_is_searched(make_run, tmp_path) -> None:
    make_run("b"), make_run("a")
    assert [run.name for run in load_runs([tmp_path])] == ["a", "b"]
    assert [run.name for run in load_runs([tmp_path / "eval" / "b", tmp_path])] == ["b", "a"]


def test_equal_folder_names_are_told_apart(make_run, tmp_path) -> None:
    run = make_run("digits_diffpure")
    shutil.copytree(run, tmp_path / "again" / "digits_diffpure")
    runs = load_runs([run, tmp_path / "again"])
    assert [run.name for run in runs] == ["eval/digits_diffpure", "again/digits_diffpure"]
    assert {run.recipe for run in runs} == {"digits_diffpure"}


def test_missing_folders_and_cards_name_the_remedy(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder .*nowhere: run `python cli.py test -c configs/eval"):
        report([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"No card.json is in .* run `python cli.py test -c configs/eval"):
        report([tmp_path])
    with pytest.raises(ValueError, match="No run folder is given"):
        report([])


def test_other_cards_are_refused(make_run) -> None:
    run = make_run("digits_diffpure")
    card = json.loads((run / "card.json").read_text())
    (run / "card.json").write_text(json.dumps({**card, "schema": 2}))
    with pytest.raises(ValueError, match="has schema 2, and this version of Lustral reads schema 1"):
        report([run])
    card["cost"]["defence"] = {"network_calls_per_image": 1.0, "seconds_per_image": None}
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"is damaged \(it lacks cost\.defence\.seconds_per_image\)"):
        report([run])
    for text in ("[]", "{}", '{"schema": 1'):
        (run / "card.json").write_text(text)
        with pytest.raises(ValueError, match="is no card of an evaluation"):
            report([run])


def test_runs_are_compared_image_by_image(make_run) -> None:
    first = make_run("digits_undefended", 0.95, 0.05, purified=False)
    second = make_run("digits_diffpure", 0.95, 0.6, indices=range(20, 110))
    pairs, notes = paired_comparisons(load_runs([first, second]))
    assert not notes
    assert (pairs[0].run, pairs[0].reference, pairs[0].n) == ("digits_diffpure", "digits_undefended", 90)
    a, b = (run.verdicts("expected", [(0, i) for i in range(20, 110)])[1] for run in load_runs([first, second]))
    assert pairs[0].robust == compare(a, b)
    assert pairs[0].robust.verdict == "better"
    pairs, _ = paired_comparisons(load_runs([second, first]))
    assert pairs[0].robust.verdict == "worse"
    text = report([first, second])
    assert "## Paired comparisons" in text
    assert f"{100 * compare(a, b).difference:+.1f} [" in text


def test_sample_specific_runs_are_compared_with_their_base_and_controls(make_run) -> None:
    folders = [
        make_run("undefended", purified=False),
        make_run("diffpure"),
        make_run("ssni", temperature=10.0),
        make_run("mean", temperature=10.0, control="MeanLevels"),
        make_run("mean_of_another", temperature=5.0, control="MeanLevels"),
        make_run("less", t_star=50),
        make_run("over_less", t_star=50, temperature=10.0),
    ]
    pairs, _ = paired_comparisons(load_runs(folders))
    assert [(pair.run, pair.reference) for pair in pairs[6:]] == [
        ("ssni", "diffpure"),
        ("ssni", "mean"),
        ("over_less", "less"),
    ]


def test_equal_runs_are_undecided(make_run, tmp_path) -> None:
    run = make_run("digits_diffpure")
    shutil.copytree(run, tmp_path / "eval" / "copy")
    pairs, _ = paired_comparisons(load_runs([run, tmp_path / "eval" / "copy"]))
    assert pairs[0].robust.verdict == pairs[0].clean.verdict == "undecided"
    assert pairs[0].robust.difference == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"eps": "4/255"}, "the threat differs"),
        ({"target": "worst"}, "the target differs"),
        ({"indices": range(200, 220)}, "they have no image in common"),
    ],
)
def test_what_cannot_be_compared_is_said(make_run, options, reason) -> None:
    text = report([make_run("first"), make_run("second", **options)])
    assert f"second is not compared with first: {reason}." in text


def test_a_card_alone_can_be_reported(make_run) -> None:
    first, second = make_run("first"), make_run("second")
    shutil.rmtree(second / "records")
    text = report([first, second])
    assert "second is not compared with first: the records of second are missing." in text


def test_a_single_run_is_compared_with_nothing(make_run) -> None:
    assert "Paired comparisons" not in report([make_run("only")])


def test_validation_runs_say_so(make_run) -> None:
    runs = [make_run("test"), make_run("tuning", split="validation")]
    text = report(runs)
    assert "tuning is not compared with test: the data differs." in text
    assert "| digits (validation) |" in text
    assert "digits (validation)" in report(runs, "csv")


def test_components_in_short() -> None:
    solver = {"class": "DDIM", "eta": 0.5}
    nested = {"class": "Wrapped", "inner": {"class": "Net", "weights_sha256": "x"}}
    purifier = {"class": "Gradual", "denoiser": nested, "levels": [30, 50], "solver": solver, "clip": True}
    assert component_in_short(purifier) == "Gradual levels=[30, 50], DDIM(eta=0.5)"
    many = {"class": "Many", **{name: i for i, name in enumerate("abcdef")}}
    assert component_in_short(many) == "Many a=0, b=1, c=2, d=3, ..."
    assert defence_in_short({"class": "Defence", "purifier": {"class": "Identity"}}) == "none"
    pgd = {"class": "PGD", "num_steps": 5, "restarts": 2, "eot": 1, "objective": {"class": "Margin"}}
    assert attack_in_short({**pgd, "gradient": "bpda"}) == "PGD 5, 2 restarts, Margin, bpda"
    assert attack_in_short({"class": "RandomDirections", "threat": {}}) == "RandomDirections"
    surrogate = {**pgd, "gradient": "exact", "surrogate": {"class": "DiffPure", "t_star": 50.0, "num_steps": 5}}
    assert attack_in_short(surrogate) == "PGD 5, 2 restarts, Margin, exact through DiffPure t*=50, 5 steps"
    variant = {"class": "Variant", "changes": {"t_small": 150, "mask.rounding": False}}
    varied = {**pgd, "gradient": "exact", "surrogate": variant, "context": "clean", "region": "low_noise"}
    words = (
        "PGD 5, 2 restarts, Margin, low_noise, exact through Variant(t_small=150, mask.rounding=False), clean context"
    )
    assert attack_in_short(varied) == words
    masked = {
        "class": "HeterogeneousNoise",
        "mask": {"class": "AttentionMask", "tau": 0.8},
        "t_large": 150,
        "t_small": 50,
    }
    masked |= {"num_steps": [5, 5], "num_resamples": 3}
    assert component_in_short(masked) == "HeterogeneousNoise t_l=150, t_s=50, [5, 5] steps, U=3, AttentionMask(tau=0.8)"
    ensemble = {"class": "Ensemble", "selection_draws": 16, "attacks": [surrogate, {"class": "RandomDirections"}]}
    assert attack_in_short(ensemble) == f"Ensemble of {attack_in_short(surrogate)} + RandomDirections"
