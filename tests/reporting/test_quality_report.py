"""What a report says of quality evaluations, from cards and records written as a run writes them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lustral.attacks import PGD
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence, Fingerprint, RecordFolder
from lustral.evaluation.adversarial_images import MadeByAttack
from lustral.evaluation.quality import PAIRS, QualityEvaluator
from lustral.evaluation.quality_card import make_quality_card
from lustral.purifiers import AttentionMask, DiffPure, HeterogeneousNoise, Identity, Purifier
from lustral.reporting import attention_panel, heat, load_runs, overlay, report, write_report
from lustral.reporting import quality_sheets as sheets
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, SeenClassifier, SmoothDenoiser, ToyClassifier, images, right_cases, stream

Make = Callable[..., Path]


@pytest.fixture
def make_quality_run(tmp_path: Path) -> Make:
    """A function that writes a finished quality run and gives its folder."""

    def make(name: str, purifier: Purifier, surrogate: Purifier | None = None, number: int = 12) -> Path:
        attack = PGD(1, eot=1, selection="last", surrogate=surrogate)
        source = MadeByAttack(attack, ThreatModel("linf", "24/255"))
        evaluator = QualityEvaluator(Defence(ToyClassifier(), purifier), source, 1, 0, 8)
        folder = RecordFolder(
            tmp_path / name / "records", Fingerprint({**evaluator.decides(), "data": {"dataset": "toys"}})
        )
        folder.append(records := evaluator.evaluate(right_cases(number)))
        folder.close()
        fingerprint = json.loads((tmp_path / name / "records" / "fingerprint.json").read_text())
        card = make_quality_card(records, fingerprint, [evaluator.cost.line()])
        (tmp_path / name / "card.json").write_text(json.dumps(card))
        return tmp_path / name

    return make


def test_a_report_has_pairs_settings_and_paired_comparisons(make_quality_run: Make, tmp_path: Path) -> None:
    weak = make_quality_run("weak", NoisyPurifier(0.01), Identity())
    strong = make_quality_run("strong", NoisyPurifier(0.5), Identity(), 9)
    written = write_report([weak, strong], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("| weak ") >= len(PAIRS)
    assert "purified adversarial : clean" in text
    assert "linf 24/255" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| strong") and "| weak" in line]
    name, reference, n, *cells = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, reference, n) == ("strong", "weak", "9")
    assert [cell[0] for cell in cells] == ["+", "+", "-", "-"], "farther off and less alike"
    assert any(path.name == "feature_distance.png" for path in written)
    lines = report([weak, strong], "csv").splitlines()
    assert len(lines) == 1 + 2 * len(PAIRS)
    assert {"pair", "psnr", "ssim_low", "distance_high", "alignment", "known"} <= set(lines[0].split(","))
    assert [each["name"] for each in json.loads(report([weak, strong], "json"))] == ["weak", "strong"]
    assert "Paired comparisons of image quality" in report([weak, strong], "latex")


def test_runs_with_other_adversarial_images_are_not_compared(make_quality_run: Make) -> None:
    text = report([make_quality_run("a", NoisyPurifier(0.1)), make_quality_run("b", NoisyPurifier(0.5))])
    assert "b is not compared with a: the adversarial images differ" in text


def test_a_damaged_card_is_named(make_quality_run: Make) -> None:
    run = make_quality_run("damaged", NoisyPurifier())
    card = json.loads((run / "card.json").read_text())
    del card["right"]
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"card.json is damaged \(it lacks right.clean.value\)"):
        load_runs([run])


# Pictures ----------------------------------------------------------------------------------------------------


def _attentive() -> HeterogeneousNoise:
    mask = AttentionMask(["conv"], tau=0.5)
    return HeterogeneousNoise(SmoothDenoiser(VPSchedule()).float(), mask, 200, 50, (4, 2))


@pytest.mark.parametrize(
    ("purifier", "stems"),
    [
        (NoisyPurifier(0.2), {"joint_distribution", "noise_patterns"}),
        (
            DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 3),
            {"joint_distribution", "noise_patterns", "trajectories"},
        ),
        (_attentive(), {"joint_distribution", "noise_patterns", "trajectories", "attention"}),
    ],
    ids=["no path", "a path", "a mask"],
)
def test_sheets_are_drawn_of_what_a_purifier_offers(
    purifier: Purifier, stems: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "SHOWN", 2)
    chosen, attack = right_cases(8), PGD(2, eot=1, selection="last", surrogate=Identity())
    defence = Defence(SeenClassifier(), purifier)
    evaluator = QualityEvaluator(defence, MadeByAttack(attack, ThreatModel("linf", 0.3)), 1, 0, 8)
    records, by_index = evaluator.evaluate(chosen), dict(zip(chosen.index.tolist(), chosen.images, strict=True))
    names = ["a", "b", "c"]

    def found(index: list[int]) -> torch.Tensor:
        return torch.stack([by_index[each] for each in index])

    figures = sheets.quality_sheets(defence, records, 0, found, names, torch.device("cpu"))
    assert figures.keys() == stems
    rows = {"noise_patterns": 6, "attention": 9}  # clean, its mask, adversarial, attention ... two states, purified
    for stem, figure in figures.items():
        if stem in rows:
            assert len(figure.axes) == rows[stem] * 2
        else:
            figure.savefig(tmp_path / f"{stem}.png", dpi=20)
        if stem == "joint_distribution":
            assert len(figure.axes) == 3 * 3
            assert [len(axes.collections) for axes in figure.axes if axes.get_xlabel()] == [2, 2, 2]
    assert sheets.quality_sheets(defence, records[:1], 0, found, names, torch.device("cpu")) == {}


def test_a_purifier_without_a_mask_has_no_panel() -> None:
    defence = Defence(ToyClassifier(), NoisyPurifier())
    assert attention_panel(defence, images(2), images(2), [0, 1], ["a", "b"], stream(2)) is None


def test_masks_colour_the_inside_alone() -> None:
    x, mask = images(1), torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    shown = overlay(x, mask)
    changed = (shown != x.expand(-1, 3, -1, -1)).any(1)
    assert changed.sum() == 1
    assert changed[0, 1, 2]
    warm = heat(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert warm.shape == (2, 3, 1, 1)
    assert warm[0].sum() < 0.1 < 2 < warm[1].sum()
