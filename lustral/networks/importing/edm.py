"""EDM's pickles of DDPM++ and NCSN++ (Karras et al. 2022), and ECT's (Geng et al. 2024), which have the same form.

The architecture is given by the constructor arguments in the pickle. ``map_augment`` is kept, though nothing here uses
it; the resampling filters are compared and not loaded. In evaluation the scales of ECT's network are shifted by its
``sigma_min``, like those of "consistency"; they are EDM's only in its training.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lustral.networks import SongUNetDenoiser
from lustral.networks.importing.formats import Format
from lustral.networks.importing.inert_pickle import Held, read_inert
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.importing.song_layout import parts

_PRECONDITIONING = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "ECMPrecond": "consistency"}
# The constants with which the formulas of each class are those of `lustral.networks.preconditioners`.
_CONSTANTS = {"VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}}
_DEFAULTS: dict[str, Any] = {
    "img_resolution": None,
    "in_channels": None,
    "out_channels": None,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}


def load(path: str | Path) -> nn.Module:
    """The denoiser (``ema``) of a pickle, with the preconditioning given by its class.

    Raises:
        ValueError: if the file holds anything else, a class-conditional network, or constants that are not the
            published ones.
    """
    file = Path(path).name
    outer, inner = _modules(read_inert(path), file)
    chosen = _arguments(outer, inner, file)
    fourier, pyramid = chosen["embedding_type"] == "fourier", chosen["encoder_type"] == "residual"
    network = SongUNetDenoiser(
        image_size=chosen["img_resolution"],
        channels=chosen["in_channels"],
        base_channels=chosen["model_channels"],
        multipliers=chosen["channel_mult"],
        blocks=chosen["num_blocks"],
        attention_sizes=chosen["attn_resolutions"],
        dropout=chosen["dropout"],
        embedding="fourier" if fourier else "positional",
        encoder="residual" if pyramid else "standard",
        resample_filter=chosen["resample_filter"],
        channel_mult_noise=chosen["channel_mult_noise"],
        augment_dim=chosen["augment_dim"],
        preconditioning=_PRECONDITIONING[outer.class_name],  # type: ignore[arg-type]
        sigma_data=outer.state.get("sigma_data", 0.5),
        sigma_min=_sigma_min(outer),
    )
    tensors = outer.tensors()
    _check_filters(tensors, network, file)
    return fill(network, rules(network), tensors, file)


def rules(network: SongUNetDenoiser) -> list[Rule]:
    """The rules from ``model.enc.32x32_block0.…`` to the network's names."""
    made, names, source = [], _names(network), ""
    for part in parts(network.network):
        if part.kind == "attention":
            made += pairs(f"{part.name}.norm", f"{source}.norm2") + pairs(f"{part.name}.proj", f"{source}.proj")
            made += [rule(f"{part.name}.qkv.{m}", f"{source}.qkv.{m}", _thirds) for m in ("weight", "bias")]
            continue
        source = next(names)
        if part.kind == "fourier":
            made.append(rule(f"{part.name}.frequencies", f"{source}.freqs"))
        elif part.kind == "block":
            members = ["norm0", "conv0", "affine", "norm1", "conv1", *(["skip"] if part.projects else [])]
            made += [r for member in members for r in pairs(f"{part.name}.{member}", f"{source}.{member}")]
        else:
            made += pairs(part.name, source)
    if network.augment_dim:
        made.append(rule("network.map_augment.weight", "model.map_augment.weight"))
    return made


def _thirds(rows: Tensor) -> Tensor:
    """Reorder rows from q, k, v of channel 0, of channel 1, ... to all of q, all of k, all of v."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def _names(network: SongUNetDenoiser) -> Iterator[str]:
    """The file's modules in the order of the forward pass; an attention is part of its block."""
    pixels = [network.image_size >> level for level in range(len(network.multipliers))]
    sizes = [f"{size}x{size}" for size in pixels]
    if network.embedding == "fourier":
        yield "model.map_noise"
    yield from ("model.map_layer0", "model.map_layer1", f"model.enc.{sizes[0]}_conv")
    for level, size in enumerate(sizes):
        if level:
            yield f"model.enc.{size}_down"
            if network.encoder == "residual":
                yield f"model.enc.{size}_aux_residual"
        yield from (f"model.enc.{size}_block{i}" for i in range(network.blocks))
    yield from (f"model.dec.{sizes[-1]}_in{i}" for i in range(2))
    for level, size in reversed(list(enumerate(sizes))):
        if level < len(sizes) - 1:
            yield f"model.dec.{size}_up"
        yield from (f"model.dec.{size}_block{i}" for i in range(network.blocks + 1))
    yield from (f"model.dec.{sizes[0]}_aux_norm", f"model.dec.{sizes[0]}_aux_conv")


def _check_filters(tensors: dict[str, Tensor], network: SongUNetDenoiser, file: str) -> None:
    """Remove the resampling filters from ``tensors``; each must be present and equal to the one used here."""
    taps = torch.tensor(network.resample_filter, dtype=torch.float32)
    expected = (torch.outer(taps, taps) / taps.sum().square())[None, None]
    resampling = [name for name in _names(network) if name.endswith(("_down", "_up"))]
    owners = [f"{name}.{member}" for name in resampling for member in ("conv0", "skip")]
    owners += [name for name in _names(network) if name.endswith("_aux_residual")]
    for name in (f"{owner}.resample_filter" for owner in owners):
        found = tensors.pop(name, None)
        if found is None or found.shape != expected.shape or not torch.allclose(found.float(), expected):
            raise ValueError(
                f"{file} should hold the filter {network.resample_filter} as {name}, and "
                f"{'has another' if found is not None else 'does not'}: copy or download it again."
            )


def _modules(content: Any, file: str) -> tuple[Held, Held]:
    """The preconditioned network and the bare network inside it."""
    outer = content.get("ema") if isinstance(content, Mapping) else None
    inner = outer.modules().get("model") if isinstance(outer, Held) else None
    if not isinstance(outer, Held) or inner is None:
        raise ValueError(f"{file} is a pickle without a preconditioned network under 'ema': check --format.")
    if outer.class_name not in _PRECONDITIONING or inner.class_name != "SongUNet":
        raise ValueError(
            f"{file} holds a {outer.class_name} of a {inner.class_name}; known are {', '.join(_PRECONDITIONING)} of a "
            "SongUNet (DDPM++ or NCSN++)."
        )
    return outer, inner


def _sigma_min(outer: Held) -> Any:
    """The sigma at which ECT's function is the identity; in other classes the attribute of this name is ignored."""
    return outer.state.get("sigma_min") if outer.class_name == "ECMPrecond" else 0.002


def _arguments(outer: Held, inner: Held, file: str) -> dict[str, Any]:
    """The constructor arguments of the SongUNet, refused unless a `SongUNetDenoiser` can represent it."""
    for name, needed in _CONSTANTS.get(outer.class_name, {}).items():
        if outer.state.get(name) != needed:
            raise ValueError(
                f"{file} holds a {outer.class_name} with {name} = {outer.state.get(name)}; only {needed} is known here."
            )
    given, placed = inner.state.get("_init_kwargs"), inner.state.get("_init_args")
    if not isinstance(given, Mapping) or not isinstance(placed, (tuple, list)):
        raise ValueError(f"{file} does not record what its network was made with, so it cannot be rebuilt.")
    chosen = {**_DEFAULTS, **dict(zip(_DEFAULTS, placed, strict=False)), **given}
    if chosen["label_dim"] or outer.state.get("label_dim"):
        raise ValueError(
            f"{file} is class-conditional (label_dim = {chosen['label_dim']}), and would be told the label it must not "
            "know: import the unconditional network (uncond)."
        )
    allowed = {
        "channel_mult_emb": (4,),
        "embedding_type": ("positional", "fourier"),
        "encoder_type": ("standard", "residual"),
        "decoder_type": ("standard",),
        "out_channels": (chosen["in_channels"],),
    }
    for name, values in allowed.items():
        if chosen[name] not in values:
            known = " or ".join(map(repr, values))
            raise ValueError(f"{file} holds a SongUNet with {name} = {chosen[name]!r}; only {known} is known here.")
    whole = [chosen[name] for name in ("img_resolution", "in_channels", "model_channels", "num_blocks")]
    whole += [chosen[name] for name in ("channel_mult_noise", "augment_dim")]
    for name in ("channel_mult", "attn_resolutions", "resample_filter"):
        whole += chosen[name] if isinstance(chosen[name], (list, tuple)) else [str(chosen[name])]
    numbers = [chosen["dropout"], outer.state.get("sigma_data", 0.5), _sigma_min(outer)]
    strange = [v for v in whole if not isinstance(v, int)] + [v for v in numbers if not isinstance(v, (int, float))]
    if strange:
        raise ValueError(f"{file} was made with {strange[0]!r} where a number belongs: copy or download it again.")
    if strangers := sorted(chosen.keys() - _DEFAULTS.keys()):
        raise ValueError(f"{file} holds a SongUNet with {strangers[0]!r}, which is not known here.")
    return chosen


EDM = Format(
    name="edm",
    network="EDM's and ECT's DDPM++ and NCSN++ (SongUNetDenoiser)",
    file="edm-cifar10-32x32-uncond-vp.pkl",
    published="nvlabs-fi-cdn.nvidia.com/edm/pretrained, linked from github.com/NVlabs/edm",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    load=load,
)
