"""From any error to one sentence that hides nothing."""

import pytest
from torch._utils import ExceptionWrapper

from lustral.complaints import plain, surprising


def _from_a_worker(error: Exception) -> Exception:
    """What a DataLoader raises in the place of its worker's ``error``."""
    try:
        raise error
    except Exception:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapper.reraise()
    return caught.value


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_a_workers_cause_is_not_lost(kind: type[Exception]) -> None:
    error = _from_a_worker(kind("x.png cannot be read as an image (cut off): fetch it again."))
    assert str(error).startswith("Caught ")
    assert plain(error) == "x.png cannot be read as an image (cut off): fetch it again."


@pytest.mark.parametrize(
    ("error", "told"),
    [(KeyError("label"), "KeyError: 'label';"), (AssertionError(), "AssertionError: without a word;")],
)
def test_nor_is_a_bug_in_a_worker_taken_for_bad_input(error: Exception, told: str) -> None:
    assert told in surprising(_from_a_worker(error))


def test_a_worker_that_died_is_told_with_what_helps() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly")
    assert "lower --data.num_workers" in surprising(error)
    assert plain(error) == surprising(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 12.0 GiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)
def test_too_little_memory_is_told_with_what_helps(error: Exception) -> None:
    assert "lower --data.batch_size" in surprising(error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("logits"), "KeyError: 'logits'; LUSTRAL_TRACEBACK=1 shows where."),
        (AssertionError(), "AssertionError: without a word; LUSTRAL_TRACEBACK=1 shows where."),
        (RuntimeError("one\ntwo"), "RuntimeError: one; LUSTRAL_TRACEBACK=1 shows where."),
    ],
)
def test_what_nobody_foresaw_is_told_honestly(error: Exception, told: str) -> None:
    assert surprising(error) == f"This looks like a bug of Lustral or of a class of yours: {told}"


@pytest.mark.parametrize(
    ("class_path", "names", "told"),
    [
        (
            "lightning_modules.RobustnessEvaluation",
            "purifier, threat",
            "model: RobustnessEvaluation must be given purifier, threat: --model.purifier configs/purifier/FILE.yaml "
            "--model.threat configs/threat/FILE.yaml.",
        ),
        ("lustral.attacks.PGD", "num_steps", "model: PGD must be given num_steps."),
        ("elsewhere.Wrapper", "purifier", "model: Wrapper must be given purifier."),
    ],
)
def test_what_must_be_given_is_told_with_the_option_that_gives_it(class_path: str, names: str, told: str) -> None:
    error = ValueError(
        f"Parser key \"model\":\n  - Problem with given class_path '{class_path}':\n"
        f"      the following arguments are required: {names}\n  - Expected a <class 'NoneType'>"
    )
    assert plain(error) == told


def test_endless_recursion_is_no_bug_report() -> None:
    assert "leads back to itself" in surprising(RecursionError("maximum recursion depth exceeded"))
