"""Common corruptions: what happens to images without anybody's intent."""

from lustral.corruptions.common import CORRUPTIONS, CommonCorruptions
from lustral.corruptions.severities import CONSTANTS, SEVERITIES, TYPES

__all__ = ["CONSTANTS", "CORRUPTIONS", "SEVERITIES", "TYPES", "CommonCorruptions"]
