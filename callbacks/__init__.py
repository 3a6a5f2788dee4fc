"""Callbacks around training and evaluation: averages, exports, records, pictures, progress, provenance."""

from callbacks.attack_records import AttackRecords
from callbacks.ema import EMA
from callbacks.finite_loss import FiniteLoss
from callbacks.panels import Panels
from callbacks.predictions import Predictions
from callbacks.progress import InnerProgress
from callbacks.provenance import Provenance
from callbacks.sample_grid import SampleGrid
from callbacks.sample_quality import SampleQuality
from callbacks.stopping import Stopping
from callbacks.tensorboard import DeferredTensorBoard
from callbacks.weight_export import WeightExport

__all__ = [
    "EMA",
    "AttackRecords",
    "DeferredTensorBoard",
    "FiniteLoss",
    "InnerProgress",
    "Panels",
    "Predictions",
    "Provenance",
    "SampleGrid",
    "SampleQuality",
    "Stopping",
    "WeightExport",
]
