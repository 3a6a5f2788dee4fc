"""The attacks of configs/attack: each one builds from its file, shrunk, and finds something to return."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser, Namespace

from lustral.attacks import (
    PGD,
    Attack,
    Cases,
    Engine,
    Ensemble,
    LagrangianPGD,
    LatentSearch,
    MeanLogitCrossEntropy,
    MoveAttention,
    gradient_attacks,
    surrogates,
)
from lustral.detectors import GroupMMD, Reference, SemanticKernel
from lustral.diffusion import ConsistencyGenerator, EulerMaruyama, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Defence
from lustral.networks import Penultimate
from lustral.purifiers import (
    CMAP,
    DAD,
    GNSP,
    JPEG,
    SSNI,
    AnswerOfTransformed,
    AttentionMask,
    Denoise,
    DiffPure,
    DistributionTransfer,
    HeterogeneousNoise,
    JointGuidance,
    MSEGuidance,
    OutputGuidance,
    Purifier,
    SigmoidLevels,
    Variant,
)
from lustral.threat import ThreatModel
from tests.contracts import SeenClassifier, SmoothDenoiser, ToyClassifier, images, stored_scores, stream
from tests.toys.detection import SmoothNetwork

CONFIGS = sorted(Path("configs/attack").glob("*.yaml"))
SMALL = {"base_channels": 8, "multipliers": [1, 2], "blocks": 1, "weights": None}
FEWER = {"num_steps": 2, "eot": 2, "selection_draws": 2, "finalists": 1, "num_targets": 2, "num_queries": 3}


def _parsed(path: Path) -> tuple[ArgumentParser, Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack")
    return parser, parser.parse_args(["--attack", str(path)])


def _nodes(config: Any) -> Iterator[Namespace]:
    """Every part of a parsed config."""
    if isinstance(config, Namespace):
        yield config
    for part in vars(config).values() if isinstance(config, Namespace) else config:
        if isinstance(part, (list, Namespace)):
            yield from _nodes(part)


def _built(path: Path, weights: Path, fewer: dict[str, int]) -> Attack:
    """The attack of a file, with small networks: new ones, or of a file that is at hand."""
    parser, config = _parsed(path)
    if path.stem.endswith("_grey_box"):  # its detector is of files that a calibration writes
        config.attack.init_args.surrogate = None
    for node in _nodes(config):
        given = fewer if "selection_draws" in node else SMALL if "base_channels" in node else {"weights": str(weights)}
        for name in given.keys() & vars(node).keys():
            node[name] = given[name]
    return parser.instantiate_classes(config)["attack"]


def _detecting() -> DAD:
    """A group of two images, which an attack may or may not leave undetected."""
    detector = GroupMMD(
        SemanticKernel(Penultimate(ToyClassifier(5, (1, 8, 8))), 0.1, 20.0, 4.0),
        reference=Reference(images(4, (1, 8, 8), 1), torch.arange(4), {}),
    )
    return DAD(Denoise(SmoothNetwork()), detector, 0.05, 2)


def _purifier(attack: Attack, shape: tuple[int, int, int]) -> Purifier:
    """SSNI with levels between a tenth and all of t*; or the method that the attack varies."""
    changes = [each.changes for each in surrogates(attack) if isinstance(each, Variant)]
    varied = {name for each in changes for name in each}
    if varied & {"guidance_gradient", "guidance.output.reference.transform.rounding"}:
        joint = JointGuidance(OutputGuidance(AnswerOfTransformed(JPEG())), MSEGuidance("shared", 1))
        return DistributionTransfer(SmoothDenoiser(VPSchedule(), shape).float(), joint, num_steps=2, scale=20.0)
    denoiser = SmoothDenoiser(VPSchedule(), shape).float()
    members = gradient_attacks(attack)
    if isinstance(attack, LatentSearch) or {"smoothing", "solver_steps"} & varied or _carries(attack):
        return CMAP(ConsistencyGenerator(denoiser, 1.0), num_latents=2, num_steps=2, lr=0.05)
    looks = any(isinstance(m, PGD) and (m.region != "all" or isinstance(m.objective, MoveAttention)) for m in members)
    if looks or {"mask.rounding", "allow_inert"} & varied:
        return HeterogeneousNoise(denoiser, AttentionMask(["conv"]), num_steps=(4, 1))
    purifier = (
        GNSP(denoiser, [(100, 2)])
        if {"rounds", "purifier.rounds"} & varied
        else DiffPure(denoiser, EulerMaruyama(), 100, 2)
    )
    if {"rounds", "num_steps"} & varied:
        return purifier
    score = EPS(2, 10.0)
    known = [700.0, 1000.0] if shape[0] == 1 else [6000.0, 6300.0]
    return SSNI(purifier, SigmoidLevels(5.0, 100.0), stored_scores(purifier.denoiser, score, known), score)


def _carries(attack: Attack) -> bool:
    return any("latents" in member.carry for member in gradient_attacks(attack))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_attack_config_runs_against_a_purifier_with_levels(path: Path, digit_weights: dict[str, Path]) -> None:
    attack = _built(path, digit_weights["denoiser"], FEWER)
    chosen = Cases(images(2, (1, 8, 8)), torch.tensor([0, 2]), stream(2).index)
    purifier = _detecting() if "dad_" in path.stem else _purifier(attack, (1, 8, 8))
    if path.stem.endswith("_grey_box"):
        assert isinstance(attack, LagrangianPGD)
        attack.surrogate = Variant({"route": "raw"}).of(_detecting())
    defence = Defence(SeenClassifier(5, (1, 8, 8)), purifier).requires_grad_(False)
    if isinstance(defence.purifier, SSNI):
        levels = defence(chosen.images, stream(2), wants=["levels"]).trace["levels"]
        assert 10 < levels.amin() < levels.amax() < 104
    result = attack(Engine(defence, 4), chosen, ThreatModel("linf", "64/255"), stream(2))
    assert not result.failed.any()
    assert (result.distance > 0).any()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_attack_config_says_what_it_is(path: Path) -> None:
    first, rest = path.read_text().split("\n", 1)
    assert first.startswith("# ")
    assert first.endswith(".") or rest.startswith("# ")


PUBLISHED = {
    "bpda50_eot15": {"num_steps": 50, "step_size": "2/255", "eot": 15, "gradient": "bpda", "random_start": False},
    "bpda40_eot15": {"num_steps": 40, "step_size": "2/255", "eot": 15, "gradient": "bpda", "random_start": False},
    "pgd200_eot20": {"num_steps": 200, "step_size": 0.007, "eot": 20, "gradient": "exact", "random_start": False},
    "surrogate_gnsp": {"num_steps": 200, "step_size": 0.007, "eot": 20, "random_start": False},
    "surrogate_cmap": {"num_steps": 200, "step_size": "8/51000", "eot": 20, "gradient": "exact", "selection": "last"},
    "imagenet100_surrogate_cmap": {"num_steps": 100, "step_size": "4/25500", "eot": 20, "selection": "last"},
    "surrogate_diffpure": {"num_steps": 200, "step_size": 0.007, "eot": 20, "random_start": False},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_attacks_have_their_papers_numbers(name: str) -> None:
    _, config = _parsed(Path(f"configs/attack/{name}.yaml"))
    options = config.attack.init_args
    assert {key: options[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    if name == "surrogate_gnsp":
        rounds = options["surrogate"].init_args.changes["rounds"]
        assert [tuple(each) for each in rounds] == [(30, 1), (50, 1), (125, 5)]
        assert sum(steps for _, steps in rounds) == 7


def _members(name: str, weights: Path) -> list[dict[str, Any]]:
    """The ensemble of a file as its members' classes and what AutoAttack says of them."""
    ensemble = _built(Path(f"configs/attack/{name}.yaml"), weights, {})
    assert isinstance(ensemble, Ensemble)
    options = ("num_steps", "num_targets", "num_queries", "eot", "random_start")
    found = []
    for attack in ensemble.attacks:
        known = {key: getattr(attack, key) for key in options if hasattr(attack, key)}
        found.append({"class": type(attack).__name__, "objective": type(attack.objective).__name__} | known)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("name", "steps", "eot"), [("autoattack_rand", 100, 20), ("digits_autoattack_rand", 20, 8)])
def test_autoattack_for_random_defences_is_auto_pgd_on_two_losses(
    name: str, steps: int, eot: int, digit_weights: dict[str, Path]
) -> None:
    apgd = {"class": "APGD", "num_steps": steps, "eot": eot, "random_start": True}
    losses = ("CrossEntropy", "DifferenceOfLogitsRatio")
    assert _members(name, digit_weights["denoiser"]) == [apgd | {"objective": loss} for loss in losses]


def test_standard_autoattack_has_its_four_members(digit_weights: dict[str, Path]) -> None:
    found = _members("autoattack_standard", digit_weights["denoiser"])
    assert [member["class"] for member in found] == ["APGD", "APGDTargeted", "FAB", "Square"]
    assert all(member["eot"] == 1 for member in found)
    assert [member.get("num_steps") for member in found] == [100, 100, 100, None]
    assert [member.get("num_targets") for member in found] == [None, 9, 9, None]
    assert found[3]["num_queries"] == 5000
    losses = [member["objective"] for member in found]
    assert losses[:2] == ["CrossEntropy", "TargetedDifferenceOfLogitsRatio"]


def test_bpda_of_diffpure_follows_the_mean_logits(digit_weights: dict[str, Path]) -> None:
    attack = _built(Path("configs/attack/bpda50_eot15.yaml"), digit_weights["denoiser"], {})
    assert isinstance(attack, PGD)
    assert isinstance(attack.objective, MeanLogitCrossEntropy)
    assert attack.target == "mean_logit"


def test_the_digits_attacks_differ_only_in_what_they_are_named_for(digit_weights: dict[str, Path]) -> None:
    """20 steps and 8 draws each, and the ensemble is made of the same files."""
    found = [path for path in CONFIGS if path.stem.startswith("digits_ssni_")]
    assert len(found) >= 10
    modes = set()
    for path in found:
        attack = _built(path, digit_weights["denoiser"], {})
        members = attack.attacks if isinstance(attack, Ensemble) else [attack]
        for member in members:
            assert isinstance(member, PGD)
            assert (member.num_steps, member.eot, member.step_size, member.random_start) == (20, 8, None, True)
            assert member.gradient == "exact"
            variant = member.surrogate
            changes = tuple(variant.changes.items()) if isinstance(variant, Variant) else ()
            modes.add((type(variant).__name__, changes, member.context))
        if isinstance(attack, Ensemble):
            kinds = [(m.sees_the_defence, type(m.objective).__name__) for m in members if isinstance(m, PGD)]
            assert len(kinds) > 5
            assert kinds[0] == (True, "CrossEntropy"), "the first member is the plain adaptive attack"
    assert modes == {
        ("NoneType", (), "own"),
        ("Variant", (("rounding", "straight_through"),), "own"),
        ("Variant", (("rounding", False),), "own"),
        ("NoneType", (), "clean"),
        ("DiffPure", (), "own"),
    }
