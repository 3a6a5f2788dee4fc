"""What is done about the machine."""

import ast
import ctypes
import os
import resource
from pathlib import Path

import pytest
import torch

from lightning_modules import RobustnessEvaluation
from lustral import environment
from lustral.attacks import PGD
from lustral.evaluation import Protocol
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, right_cases

ROOT = Path(__file__).resolve().parents[1]


def test_what_the_libraries_read_when_they_start_is_set() -> None:
    assert os.environ["OMP_WAIT_POLICY"]
    assert os.environ["MKL_CBWR"]


ENTRIES = [ROOT / "cli.py", ROOT / "tests" / "conftest.py", ROOT / "lustral" / "__init__.py"]
ENTRIES += [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_entry_sets_the_environment_before_it_imports_anything_else(path: Path) -> None:
    """The garbage collector apart, which is set even before."""
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    first = next(node for node in imports if ast.unparse(node) != "import gc")
    assert isinstance(first, ast.ImportFrom)
    assert (first.module, [alias.name for alias in first.names]) == ("lustral", ["environment"])


def test_the_environment_is_set_before_torch_is_imported() -> None:
    lines = (ROOT / "lustral" / "environment.py").read_text().splitlines()
    assert lines.index('os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")') < lines.index("import torch")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_the_gaps_of_the_heap_are_given_back() -> None:
    """60,000 tensors of 8 KiB, of which every second is freed: half of their memory is gaps."""
    heap = environment._Heap()
    tensors = [torch.zeros(2048) for _ in range(60_000)]
    del tensors[::2]
    before = _resident()
    heap.release()
    assert before - _resident() > 60_000 * 8192 / 4
    del tensors
    before = _resident()
    heap.release()  # so soon it does nothing
    assert abs(before - _resident()) < 2**20


def test_every_step_of_an_attack_may_release_it(monkeypatch: pytest.MonkeyPatch) -> None:
    released, told = [], []
    monkeypatch.setattr("lightning_modules.evaluation.release_heap", lambda: released.append(1))
    module = RobustnessEvaluation(
        ToyClassifier(),
        NoisyPurifier(0.1),
        PGD(7, eot=2, selection_draws=2),
        ThreatModel("linf", "8/255"),
        Protocol(verdict_draws=2, audit_images=0, known_noise=False),
        rows=8,
    )
    module.evaluator.evaluate(right_cases(4), torch.zeros(4, dtype=torch.bool))
    assert len(released) >= 7
    released.clear()
    module.observe(lambda task, step, num_steps: told.append((task, step, num_steps)))
    module.evaluator.evaluate(right_cases(4), torch.zeros(4, dtype=torch.bool))
    assert [each for each in told if each[0] == "PGD"] == [("PGD", step, 7) for step in range(1, 8)]
    assert len(told) == len(released)
