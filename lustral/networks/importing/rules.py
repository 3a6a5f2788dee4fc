"""Rules from the tensor names of a foreign file to those of a network here. Every tensor must be used exactly once; an
error names those that are not."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Make = Callable[..., Tensor | tuple[Tensor, ...]]
_LISTED = 12


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """How the tensors ``targets`` of the network are made from the tensors ``sources`` of the file.

    Attributes:
        targets: names in the network's state.
        sources: names in the file.
        make: function from the source tensors (one argument each) to the target tensors; by default the identity.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    make: Make = _as_it_is


def rule(targets: str | tuple[str, ...], sources: str | tuple[str, ...], make: Make = _as_it_is) -> Rule:
    """A `Rule`; a single name may be given instead of a tuple."""
    return Rule(
        (targets,) if isinstance(targets, str) else targets,
        (sources,) if isinstance(sources, str) else sources,
        make,
    )


def pairs(target: str, source: str, members: Iterable[str] = ("weight", "bias")) -> list[Rule]:
    """Rules for the weight and bias of one layer, unchanged: ``target.weight`` from ``source.weight`` and so on."""
    return [rule(f"{target}.{member}", f"{source}.{member}") for member in members]


def fill(network: nn.Module, rules: Iterable[Rule], tensors: Mapping[str, Tensor], file: str) -> nn.Module:
    """Load ``tensors`` into ``network`` by ``rules``, strictly; returns the network.

    Args:
        network: the network to fill.
        rules: every tensor of the network's state and of the file must be in exactly one of them.
        tensors: the tensors of the file, by name.
        file: the name of the file in messages.

    Raises:
        ValueError: if a tensor is missing, unknown, of another shape, or not finite; the message names it.
    """
    rules = list(rules)
    expected = network.state_dict()
    for what, names in (
        ("target", [t for r in rules for t in r.targets]),
        ("source", [s for r in rules for s in r.sources]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        assert not twice, f"two rules share the {what}s {twice}"
    untouched = expected.keys() - {t for r in rules for t in r.targets}
    assert not untouched, f"no rule makes {sorted(untouched)}"

    wanted = [source for r in rules for source in r.sources]
    missing, unknown = [name for name in wanted if name not in tensors], sorted(tensors.keys() - set(wanted))
    kind = type(network).__name__
    if missing or unknown:
        raise ValueError(
            f"{file} has {len(tensors)} tensors and is not the file of this {kind}, which takes {len(wanted)}: "
            f"{_listed('missing', missing)}; {_listed('unknown', unknown)}. Choose the right --format, and the "
            "architecture's options (--set)."
        )
    state, reshaped = {}, []
    for r in rules:
        given = [tensors[name] for name in r.sources]
        try:
            made = r.make(*given)
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in r.sources)
            reshaped.append(f"{shapes} (cannot be rearranged: {error})")
            continue
        for target, tensor in zip(r.targets, (made,) if isinstance(made, Tensor) else made, strict=True):
            if tensor.shape != expected[target].shape:
                reshaped.append(
                    f"{', '.join(r.sources)} gives {tuple(tensor.shape)} where {tuple(expected[target].shape)} belongs"
                )
            state[target] = tensor.to(expected[target].dtype)
    if reshaped:
        raise ValueError(f"{file} does not fit this {kind}: {_listed('of another shape', reshaped)}.")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{file} holds NaN or Inf ({_listed('in', bad)}): it is no finished training's.")
    network.load_state_dict(state, strict=True)
    return network.eval()


def _listed(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
