"""Published weights: from their authors' files into weights files of this project, strictly.

One module a format; each has one `Format`, and `FORMATS` is the closed list of them.
"""

from lustral.networks.importing.formats import Format
from lustral.networks.importing.rules import Rule, fill, pairs, rule

FORMATS: dict[str, Format] = {f.name: f for f in ()}

__all__ = ["FORMATS", "Format", "Rule", "fill", "pairs", "rule"]
