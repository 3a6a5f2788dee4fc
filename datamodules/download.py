"""Turning a failed download into a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def downloading(what: str, site: str, root: str) -> Iterator[None]:
    """Around a download by torchvision: says what to do where it fails.

    Raises:
        OSError: if the site cannot be reached, ``root`` cannot be written, or what came is damaged.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a wrong checksum
        raise OSError(
            f"{what} could not be downloaded to {root} ({error}): try again, or fetch it by hand from {site}."
        ) from error
