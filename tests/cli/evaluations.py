"""How small an evaluation of the tests is, and the command that runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lustral.tables import Choice
from tests.cli.shrunk import GROUP, Shrinker, attack

EVAL = sorted(Path("configs/eval").glob("*.yaml"))
ATTACKED = [path for path in EVAL if not path.stem.endswith(("_corruptions", "_quality", "_detection"))]
"""The recipes of attacks, every one of which `test_recipes.py` runs: a base with the purifier of its first line."""
FAST = [
    *("--data.num_test", "2", "--model.protocol.verdict_draws", "2"),
    *("--model.protocol.audit_images", "1", "--model.rows", "4"),
]
FAST_ATTACK: dict[str, Any] = {"num_steps": 2, "eot": 2, "selection_draws": 2, "num_queries": 2}
FASTEST = [
    *("--data.num_test", "1", "--model.protocol.verdict_draws", "2"),
    *("--model.protocol.audit_images", "0", "--model.rows", "2"),
]
FASTEST_ATTACK: dict[str, Any] = {"num_steps": 1, "eot": 2, "selection_draws": 1, "finalists": 1, "num_queries": 2}


def num_judged(choice: Choice) -> int:
    """Images in the smallest evaluation: one, or one group."""
    return GROUP if "group_size" in ((choice.parts()["purifier"] or {}).get("init_args") or {}) else 1


def fastest(shrinker: Shrinker, choice: Choice, folder: Path) -> list[str]:
    """Words that make an evaluation as small as it can be."""
    part = shrinker.members(choice.parts()["attack"])
    small = [*shrinker.evaluation(choice), *FASTEST, *attack(part, folder, **FASTEST_ATTACK)]
    if (group := num_judged(choice)) > 1:
        small += ["--data.num_test", str(group), "--data.batch_size", str(group)]
    return small


def evaluate(cli: Callable[..., int], stage: str, run: Path, *words: object) -> None:
    """Run a command in a folder."""
    assert cli(stage, *words, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu") == 0
