"""An error message in one sentence for a failed download."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def downloading(what: str, site: str, root: str) -> Iterator[None]:
    """A context for a download by torchvision, whose error says what to do if it fails.

    Raises:
        OSError: if the site cannot be reached, ``root`` cannot be written to, or the downloaded file is damaged.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a wrong checksum
        raise OSError(
            f"{what} could not be downloaded to {root} ({error}): try again, or fetch it by hand from {site}."
        ) from error
