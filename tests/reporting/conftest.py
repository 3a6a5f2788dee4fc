"""Small finished runs, made with the real evaluation API from random logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lustral.evaluation import Fingerprint, Record, RecordFolder, make_card
from lustral.reporting import style

DRAWS = 8
CLASSES = 10

MakeRun = Callable[..., Path]


def decides(
    purified: bool,
    eps: str | float = "8/255",
    target: str = "expected",
    t_star: int = 100,
    temperature: float = 0.0,
    control: str = "",
    split: str = "test",
    step_size: float | None = None,
) -> dict[str, Any]:
    """What the real components say of themselves; SSNI's levels have the temperature, if there is one, and are those of
    a ``control`` of it, if that is named."""
    classifier = {
        "class": "WideResNet",
        "depth": 10,
        "width": 1,
        "channels": 1,
        "image_size": 8,
        "weights_sha256": "c",
    }
    denoiser = {
        "class": "UNetDenoiser",
        "channels": 1,
        "image_size": 8,
        "dropout": 0.1,
        "weights_sha256": "d",
    }
    diffpure = {
        "class": "DiffPure",
        "denoiser": denoiser,
        "solver": {"class": "EulerMaruyama"},
        "t_star": t_star,
        "num_steps": 10,
        "forward_schedule": "denoiser",
    }
    ssni = {
        "class": "SSNI",
        "purifier": diffpure,
        "levels": {"class": "SigmoidLevels", "bias": 5.0, "temperature": temperature},
        "mean_level": 52.5 + temperature,
    }
    if control:
        ssni["levels"] = {"class": control, "rule": ssni["levels"]}
    derived = {"sigma": t_star / 250, "network_calls": 10.0}
    purifier = {**(ssni if temperature else diffpure), **derived} if purified else {"class": "Identity"}
    return {
        "defence": {"class": "Defence", "classifier": classifier, "purifier": purifier},
        "attack": {
            "class": "PGD",
            "num_steps": 20,
            "step_size": step_size,
            "random_start": True,
            "restarts": 1,
            "eot": 8 if purified else 1,
            "objective": None,
            "gradient": "exact",
            "target": target,
        },
        "threat": {"class": "ThreatModel", "norm": "linf", "eps": eps},
        "protocol": {
            "class": "Protocol",
            "verdict_draws": DRAWS,
            "audit_images": 16,
            "known_noise": True,
        },
        "seed": 0,
        "rows": 16,
        "data": {"dataset": "digits", "split": split, "content": "e"},
    }


def random_record(
    index: int, clean: float, robust: float, seed: int, audited: bool, gain: float = 1.0, levels: bool = False
) -> Record:
    """A sample whose draws are right with about the given probabilities, differently for each image."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    label = index % CLASSES

    def logits(probability: float) -> torch.Tensor:
        centre = torch.tensor(probability).logit()
        own = torch.sigmoid(centre + 1.5 * torch.randn((), generator=generator))
        right = torch.rand(DRAWS, generator=generator) < own
        drawn = torch.randn(DRAWS, CLASSES, generator=generator).clamp(-4, 4)
        wrong = (label + 1) % CLASSES
        return drawn + 20.0 * torch.eye(CLASSES)[torch.where(right, label, wrong)]

    names = ("random_directions", "bpda", "known_noise", "double_eps", "large_eps")
    left = (clean, min(1.0, robust + 0.2), robust - 0.1, robust / 3, 0.0)
    spread = torch.randint(-1, 2, (5,), generator=generator) / DRAWS
    audit = {name: float((value + s).clamp(0, 1)) for name, value, s in zip(names, left, spread, strict=True)}
    audit["large_eps"] = 0.0
    own = torch.rand(4, generator=generator).tolist()
    found = {
        "level_clean": 30 + 40 * own[0],
        "level_adversarial": 90 + 15 * own[1],
        "score_clean": 38 + 3 * own[2],
        "score_adversarial": 50 + 9 * own[3],
    }
    return Record(
        index=index,
        label=label,
        image=torch.rand(1, 8, 8, generator=generator),
        distance=0.03,
        failed=False,
        clean_logits=logits(clean),
        adversarial_logits=logits(robust),
        statistics={"zero_gradients": 0.0, "loss_first": 0.1, "loss_last": 0.1 + gain, "predicted_gain": 2.0}
        | (found if levels else {}),
        audit=audit if audited else {},
    )


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the pixels a side: what is tested is which files there are and that they can be repeated."""
    monkeypatch.setitem(style._RC, "savefig.dpi", 40)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a finished run and gives its folder."""

    def make(
        name: str,
        clean: float = 0.95,
        robust: float = 0.5,
        indices: range = range(120),
        purified: bool = True,
        gain: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> Path:
        run = tmp_path / "eval" / name
        folder = RecordFolder(run / "records", Fingerprint({**decides(purified, **options), "seed": seed}))
        levels = bool(options.get("temperature"))
        folder.append([random_record(i, clean, robust, len(name), i < 16, gain, levels) for i in indices])
        folder.close()
        cost = {"images": 120, "seconds": 60.0, "peak_memory": 2**20, "calls": {"denoiser_forward": 322_560}}
        cost |= {"audit_images": 16, "audit_seconds": 90.0, "audit_calls": {"denoiser_forward": 483_840}}
        cost |= {"defence_draws": 960, "defence_seconds": 2.4, "defence_peak_memory": 2**19}
        cost |= {"defence_calls": {"classifier_forward": 960, "denoiser_forward": 9_600}}
        fingerprint = json.loads((run / "records" / "fingerprint.json").read_text())
        card = make_card(list(folder.read().values()), fingerprint, [cost])
        (run / "card.json").write_text(json.dumps(card))
        return run

    return make
