"""A small table, as its file has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CONTENT: dict[str, Any] = {
    "title": "Small",
    "source": "Somebody 2026, Table 1",
    "recipe": "../eval/digits.yaml",
    "all": {
        "dataset": "digits",
        "classifier": "WRN-10-1",
        "threat": "linf 0.15",
        "attack": "PGD",
        "choose": {"purifier": "../purifier/digits_diffpure.yaml"},
        "published": {"verdict": "one_shot", "evidence": "seed"},
    },
    "rows": [
        {"name": "one", "defence": "DiffPure", "published": {"clean": "90.10 ± 0.18", "robust": 56}},
        {
            "name": "two",
            "defence": "none",
            "classifier": "another",
            "choose": {"purifier": "../purifier/none.yaml", "attack": "../attack/pgd20.yaml"},
            "options": {"model.attack.num_steps": 3},
            "layers": ["../protocol/layer.yaml"],
        },
    ],
}


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table with some keys changed, and files of an evaluation of digits beside it."""

    def write(**changes: Any) -> Path:
        for group in ("eval", "data", "classifier", "diffusion", "purifier", "attack", "threat", "protocol"):
            if not (tmp_path / group).exists():
                (tmp_path / group).mkdir()
                for file in Path("configs", group).glob("*.yaml"):
                    (tmp_path / group / file.name).symlink_to(file.resolve())
        (tmp_path / "protocol" / "layer.yaml").write_text("model: {init_args: {rows: 3}}\n")
        (tmp_path / "tables").mkdir(exist_ok=True)
        path = tmp_path / "tables" / "small.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, **changes}, allow_unicode=True), encoding="utf-8")
        return path

    return write
