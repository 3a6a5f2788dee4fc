"""The self-check before an evaluation: a record must depend on nothing but the image and the key of its noise.

Keyed noise and network calls of one shape are meant to ensure this, but a processor, a library or a purifier may break
it, and the numbers would be silently wrong. So a few images of the run pass in several orders through the run's own
networks, losses and gradients, and must give the same bits. Single operations are tested for differences that a few
images could miss (`lustral.evaluation.operations`). Random numbers from a global generator, batch statistics, modules
in train mode and state that changes are refused by name.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lustral.attacks import Attack, Cases, CrossEntropy, Engine, Objective, gradient_attacks
from lustral.attacks.objectives import TARGET
from lustral.evaluation.operations import VECTOR, Operations, equal_rows
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Identity, Purified, Purifier

IMAGES = 3
"""The number of images of the run that are checked; they are repeated to fill calls of R rows."""
PURIFIED, LOGITS, GRADIENT = "purified pixels", "logits", "gradients"
_VARIANTS = 12  # number of queries with other noise


def self_check(engine: Engine, attack: Attack | None, cases: Cases, seed: int) -> list[str]:
    """Query a few ``cases`` (at least one) as the evaluation will, in several orders, and compare the answers; without
    an attack, no gradient is asked for.

    Returns:
        Remarks: sentences on oddities that make no number wrong.

    Raises:
        ValueError: if an image's answers depend on anything but the image and its noise stream.
    """
    cases = _few(cases, engine.group_size)
    noise = NoiseStream(seed, cases.index).fork("check")
    looks = [] if attack is None else _gradients(engine, attack)
    sources = {id(look.engine.defence): look.engine for look in (_Look(engine), *looks)}
    remarks: list[str] = []
    for source in sources.values():
        own = [look for look in looks if look.engine.defence is source.defence]
        for look in own:
            _compare(look, cases, noise, _orders(look), remarks)
        # The gradient's forward pass has tested most orders; without a graph, libraries may choose other algorithms.
        judged = _compare(_Look(source), cases, noise, _orders(_Look(source), few=bool(own)), remarks)
        remarks += _declared(_Look(source), cases, noise, judged)
    return list(dict.fromkeys(remarks))


@dataclass(frozen=True)
class _Look:
    """One kind of query that a run makes: logits as for a verdict, or also a gradient as for an attack."""

    engine: Engine
    objective: Objective | None = None
    gradient: GradientMode = "exact"
    holds_clean: bool = False

    @property
    def defence(self) -> nn.Module:
        return self.engine.defence  # type: ignore[return-value]

    @property
    def purifier(self) -> Purifier:
        return self.engine.defence.purifier  # type: ignore[attr-defined]

    def __call__(self, cases: Cases, noise: NoiseStream) -> dict[str, Tensor]:
        """Purified images, logits and gradients (if there is an objective), with a row for each case."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, purified: Purified) -> None:
            seen.append(purified.images.detach().transpose(0, 1))

        handle, passes, gradient = self.purifier.register_forward_hook(keep), 1, {}
        try:
            if self.objective is None:
                logits = self.engine.logits(cases.images, noise)
            else:
                target = (cases.labels == 0).to(cases.labels.dtype)
                answer = self.engine.answer(
                    cases.images,
                    cases.labels,
                    noise,
                    self.objective,
                    1,
                    self.gradient,
                    clean=cases.images if self.holds_clean else None,
                    given={TARGET: target},
                )
                logits, gradient = answer.logits, {GRADIENT: answer.gradient}
                passes = 1 if self.objective.separable else 2
        finally:
            handle.remove()
        purified = torch.cat(seen)
        purified = purified[: len(purified) // passes][: len(cases)]  # each pass pads its last call
        return {PURIFIED: purified, LOGITS: logits[0], **gradient}


def _gradients(engine: Engine, attack: Attack) -> list[_Look]:
    """The different gradient queries of the attack; the gradient of the cross-entropy if it makes none."""
    found: dict[object, _Look] = {}
    for member in gradient_attacks(attack):
        # Other arguments of an objective are known only inside the attack's loop; any loss can show differing bits.
        objective = member.objective if set(member.objective.expects) <= {TARGET} else CrossEntropy()
        key = (id(member.surrogate), member.gradient, type(objective), objective.needs, member.context)
        found.setdefault(key, _Look(member.source(engine), objective, member.gradient, member.context == "clean"))
    plain = _Look(engine, CrossEntropy())
    return list(found.values()) or [plain] * ("exact" in plain.purifier.gradient_modes)


def _few(cases: Cases, size: int) -> Cases:
    """`IMAGES` cases, or as many groups of ``size``: the first ones; if there are too few, mirrored and inverted copies
    of the first are added."""
    wanted = IMAGES * size
    while len(cases) < size:  # not even one group
        cases = _grown(cases, 1, len(cases))
    return _grown(cases, 2, size).select(torch.arange(wanted, device=cases.index.device))


def _grown(cases: Cases, times: int, size: int) -> Cases:
    """The cases, and ``times`` (at most 2) altered copies of the first ``size`` cases, with other indices."""
    x, y, index = cases.images, cases.labels, cases.index
    copies = [x[:size].flip(-1), 1 - x[:size]][:times]
    numbers = [(index[:size] + (k + 1) * size) % 2**32 for k in range(times)]
    return Cases(torch.cat((x, *copies)), torch.cat((y, *[y[:size]] * times)), torch.cat((index, *numbers)))


# Equal bits -------------------------------------------------------------------------------------------------


def _orders(look: _Look, few: bool = False) -> dict[str, Tensor]:
    """The orders in which cases are queried, as case numbers by row: the first case in every row of a call; all cases,
    the first one last; and all in another order. ``few`` gives the first two only.

    Where a purifier chunks its calls itself, the third is replaced by two: one case alone, and more rows than a call.
    """
    size = look.engine.group_size
    rows = max(look.engine.rows // size, 1)  # groups per call
    slot = torch.arange(max(rows, 2))
    orders = {
        "in another slot of a call": torch.zeros(rows, dtype=torch.int64),
        "beside other images": (len(slot) - 1 - slot) % IMAGES,
    }
    if not few:
        if size == 1 and not getattr(look.defence, "ragged", False):
            orders["in another order"] = (slot + len(slot) // 2) % IMAGES
        else:
            orders["alone"] = torch.zeros(1, dtype=torch.int64)
            orders["among more images"] = torch.arange(rows + 1) % IMAGES
    return {name: (order[:, None] * size + torch.arange(size)).flatten() for name, order in orders.items()}


def _compare(look: _Look, cases: Cases, noise: NoiseStream, orders: dict[str, Tensor], remarks: list[str]) -> Tensor:
    """Query the cases in every order, and return the purified cases.

    Raises:
        ValueError: if a case's bits differ between rows or orders; the message says where and why (see `_explain`).
    """
    first: dict[tuple[str, int], tuple[Tensor, Tensor, int]] = {}  # the values, and in which row of which order
    for number, (name, order) in enumerate(orders.items()):
        order = order.to(cases.images.device)
        # The first order shows every operation of a call; with more than R rows, some operations work on all of them.
        with _observed(look, len(order), every_operation=number == 0 or len(order) > look.engine.rows):
            found = look(cases.select(order), noise.select(order))
        for what, values in found.items():
            for case in order.unique().tolist():
                rows = (order == case).nonzero().flatten()
                base, *place = first.setdefault((what, case), (values[rows[0]], order, int(rows[0])))
                unequal = ~equal_rows(values[rows], base)
                if unequal.any():
                    remarks.append(_explain(look, cases, noise, what, name, place, (order, int(rows[unequal][0]))))
    return torch.stack([first[PURIFIED, case][0] for case in sorted({case for _, case in first})])


def _explain(
    look: _Look,
    cases: Cases,
    noise: NoiseStream,
    what: str,
    name: str,
    place: Any,
    other: tuple[Tensor, int],
) -> str:
    """Find the cause of a difference, by querying the two orders again and comparing the output of every module.

    Returns:
        A remark, if a gradient on a GPU differs between equal queries: GPUs sum in no fixed order, which favours no
        image.

    Raises:
        ValueError: in all other cases.
    """
    here, there = (_outputs(look, cases.select(order), noise.select(order)) for order, _ in (place, other))
    again = _outputs(look, cases.select(place[0]), noise.select(place[0]))
    (order, row), (another, other_row) = place, other
    part = _first_difference(here, again, len(order), row, row, what)
    start = f"{_names(look)}: the {what} of image {int(cases.index[order[row]])} have other bits"
    if part is not None and what == GRADIENT and cases.images.is_cuda:
        return (
            f"{start} each time that they are asked for: try --trainer.deterministic true, or records differ in bits."
        )
    if part is not None:
        raise ValueError(
            f"{start} each time that they are asked for with the same noise stream{part}: draw all noise from the "
            "stream that a purifier is given, keep no state between calls, and choose deterministic operations."
        )
    if len(order) == len(another):
        part = _first_difference(here, there, len(order), row, other_row, what)
    raise ValueError(
        f"{start} {name}, with --model.rows {look.engine.rows}{part or ''}, so "
        f"records would depend on the batch: choose a --model.rows that is a multiple of {VECTOR}; where MKL is used "
        f"(Intel), leave MKL_CBWR unset or AUTO,STRICT (now {os.environ.get('MKL_CBWR')}); if neither helps, the rows "
        "of a batch are mixed, or noise does not follow the stream of each row, and that part must be changed."
    )


def _names(look: _Look) -> str:
    return f"{type(look.purifier).__name__} before {type(look.defence.classifier).__name__}"


def _outputs(look: _Look, cases: Cases, noise: NoiseStream) -> list[tuple[str, Tensor]]:
    """The outputs of every innermost module by name, in the order of the calls, followed by the answers of ``look``."""
    seen: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Any:
        return lambda module, inputs, out: seen.append((name, out.detach())) if isinstance(out, Tensor) else None

    inner = [(name, module) for name, module in look.defence.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook(f"{name} ({type(module).__name__})")) for name, module in inner]
    try:
        answers = look(cases, noise)
    finally:
        for handle in handles:
            handle.remove()
    return [*seen, *((what, values) for what, values in answers.items())]


def _first_difference(
    here: list[tuple[str, Tensor]], there: list[tuple[str, Tensor]], rows: int, row: int, other: int, what: str
) -> str | None:
    """Words on the first module, on the way to ``what``, whose output in row ``row`` of ``here`` differs from that in
    row ``other`` of ``there``; None if there is no difference, "" if only the answers themselves differ."""
    for (name, values), (_, others) in zip(here, there, strict=False):
        if what == PURIFIED and name.startswith("classifier"):
            continue  # the classifier comes after the purifier
        if values.shape == others.shape and values.ndim and len(values) % rows == 0:
            one, two = (v.reshape(rows, -1) for v in (values, others))
            if not bool(equal_rows(one[row : row + 1], two[other]).all()):
                return "" if name in (PURIFIED, LOGITS, GRADIENT) else f" (first in {name})"
    return None


# Noise and state --------------------------------------------------------------------------------------------


def _declared(look: _Look, cases: Cases, noise: NoiseStream, base: Tensor) -> list[str]:
    """Test whether answers depend on the noise as the purifier's ``random`` declares; ``base`` are the purified cases
    with the original noise. Returns remarks.

    Raises:
        ValueError: if a purifier with ``random = False`` depends on the noise, or one with ``random = True`` uses the
            same noise for every draw, iteration or stream.
    """
    purifier, name = look.purifier, type(look.purifier).__name__
    if isinstance(purifier, Identity):  # nothing to draw, and no network to ask
        return []
    size = look.engine.group_size
    few = max(4, min(_VARIANTS, look.engine.rows))  # groups
    within = torch.arange(size, device=cases.images.device)
    groups = torch.arange(few, device=within.device)
    rows = (groups[:, None] % (len(base) // size) * size + within).flatten()
    other = 1 + groups.repeat_interleave(size)  # other draws, or other iterations
    own = noise.select(rows)
    changed = {}
    for what, stream in (
        ("draw", replace(own, draw=other)),
        ("iteration", own.at(iteration=other)),
        ("stream", own.fork("other")),
    ):
        found = look(cases.select(rows), stream)[PURIFIED]
        changed[what] = ~equal_rows(found, base[rows])
    if not purifier.random:
        if any(bool(rows.any()) for rows in changed.values()):
            raise ValueError(
                f"{name} says random = False, but its answers change with its noise, and a deterministic defence is "
                "looked at only once: say random = True, or draw nothing."
            )
        return []
    deaf = [what for what, rows in changed.items() if not rows.any()]
    if len(deaf) == len(changed):
        return [
            f"{name} says random = True, but other noise changed nothing on {len(cases)} images: every draw is paid."
        ]
    if deaf and any(bool(rows.all()) for rows in changed.values()):
        raise ValueError(
            f"The noise of {name} is the same for every {' and every '.join(deaf)}, so an attack would know what the "
            "verdict draws: hand the NoiseStream on as it comes, and take every draw from it."
        )
    return []


@contextmanager
def _observed(look: _Look, at_hand: int, every_operation: bool) -> Iterator[None]:
    """Watch the queries made in this context; then refuse the first violation found, the most specific one first.

    Raises:
        ValueError: on train mode, batch statistics, global random numbers, changed buffers or parameters, or an
            operation that depends on the row.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in look.defence.parameters())
    watch = Operations(look.engine.rows, at_hand, on_cpu)
    generators, (buffers, versions) = _generators(), _state(look.defence)
    with watch if every_operation else nullcontext():
        yield
    who = _names(look)
    for name, module in look.defence.named_modules():
        if name and module.training:
            raise ValueError(
                f"{name} ({type(module).__name__}) is in train mode, so dropout and statistics of the batch would "
                "decide results: call .eval() on it, and nowhere .train()."
            )
    if watch.batch_statistics is not None:
        batch_norms = [
            f"{name} ({type(module).__name__})"
            for name, module in look.defence.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is None
        ]
        raise ValueError(
            f"{', '.join(batch_norms) or who} normalises with the statistics of the batch ({watch.batch_statistics}), "
            "so an image's answer would depend on those beside it: use running statistics, or normalise each image."
        )
    drawn = [name for name, state in _generators().items() if state != generators[name]]
    if drawn:
        named = f" ({', '.join(dict.fromkeys(watch.draws))})" if watch.draws else ""
        raise ValueError(
            f"{who} draws from the global generator of {' and '.join(drawn)}{named}, so no image's noise could be had "
            "again: take every draw from the NoiseStream that a purifier is given; a functional dropout needs "
            "training=self.training."
        )
    after, later = _state(look.defence)
    for name, value in buffers.items():
        if after[name].shape != value.shape or not bool(equal_rows(after[name][None], value).all()):
            raise ValueError(
                f"{name} changed while images were judged, so results would depend on what was judged before: keep the "
                "state of a defence fixed."
            )
    if moved := [name for name, version in versions.items() if later[name] != version]:
        raise ValueError(f"{moved[0]} was written to while images were judged: keep the weights of a defence fixed.")
    watch.refuse()


def _generators() -> dict[str, Any]:
    """The states of all global random generators; reading does not advance them."""
    states: dict[str, Any] = {"torch": torch.get_rng_state().numpy().tobytes()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["torch on the GPU"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return states | {"numpy": repr(np.random.get_state()), "Python": random.getstate()}  # noqa: NPY002


def _state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Copies of the buffers, and the version counter of each parameter (how often it was written to)."""
    return (
        {name: buffer.detach().clone() for name, buffer in module.named_buffers()},
        {name: parameter._version for name, parameter in module.named_parameters()},
    )
