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


UNION = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_modules.ClassifierTraining':
        {}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='a.b', val='x')"""
VALUES = [
    ("Parser key \"a.b\":\n Expected a <class 'int'>. Got value: x", "model.a.b: 'x' is no int."),
    ("Parser key \"a\":\n Expected a typing.Literal['b', 'c']. Got value: x", "model.a: x is not among 'b', 'c'."),
    (
        "Parser key \"a\":\n Errors:\n - Expected a <class 'int'>\n - Expected a typing.Literal['b']\n"
        "- Expected a typing.Literal['c', 'd']\n Given value: x",
        "model.a: 'x' is no int, nor among 'b', 'c', 'd'.",
    ),
    (
        'Parser key "a":\n - Expected a path but x either not accessible or invalid\n'
        " - Expected a dot import path string: x",
        "model.a: x is no class: give its whole dotted name, as in torch.optim.AdamW.",
    ),
    (
        'Parser key "a":\n Type typing.Callable[[x.y], z] expects a function or a callable class: Parser key "b":\n'
        " - Expected a path but x either not accessible or invalid\n - Expected a <class 'float'>\n"
        " - Expected a dot import path string: x\n Given value: x. Got value: Namespace(class_path='C')",
        "model.a.b: 'x' is no float.",
    ),
    (
        "Parser key \"a\":\n Unable to load config '3'\n - Parser key \"a\": Unable to load config '3'",
        "model.a: Unable to load config '3'",
    ),
    ("the following arguments are required: a", "model: the following arguments are required: a"),
]


@pytest.mark.parametrize(("report", "told"), VALUES, ids=[told for _, told in VALUES])
def test_a_report_on_a_value_is_one_sentence(report: str, told: str) -> None:
    assert plain(ValueError(UNION.format(report))) == told


def test_endless_recursion_is_no_bug_report() -> None:
    assert "leads back to itself" in surprising(RecursionError("maximum recursion depth exceeded"))
