"""The parser of the subcommands that are not Lightning's, `report` and `import`."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose complaints are one sentence for the front door and not a block of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message}; see python {self.prog} --help.")
