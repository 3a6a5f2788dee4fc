"""The science of Lustral in plain PyTorch: noise, diffusion, purifiers, attacks and honest verdicts.

import lustral
purified = lustral.purify(images, purifier)
print(lustral.evaluate(model, images, labels, purifier=purifier, threat="linf 8/255"))
"""

from lustral import environment  # before torch and torchvision are used, whoever imports the first piece

_ENTRIES = ("Evaluation", "defend", "evaluate", "purify")

__all__ = ["environment"]


def __getattr__(name: str) -> object:
    """The entries of `lustral.api`, imported when they are first asked for: the command line needs none of them."""
    if name in _ENTRIES:
        from lustral import api

        return getattr(api, name)
    raise AttributeError(f"module 'lustral' has no attribute {name!r}")
