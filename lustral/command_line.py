"""The parser of the subcommands that are not Lightning's, `report` and `import`."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence, which `cli.py` prints, instead of a block of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of exiting the process.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message}; see python {self.prog} --help.")
