"""Evaluation: from a defence and an attack to an audited robust accuracy."""

from lustral.defence import Defence
from lustral.evaluation.card import make_card, write_card
from lustral.evaluation.corrupted import CorruptionEvaluator, CorruptionRecord, check_corruptions
from lustral.evaluation.corruption_card import make_corruption_card
from lustral.evaluation.dealing import Dealing
from lustral.evaluation.defence_evaluator import DefenceEvaluator
from lustral.evaluation.detection import DetectionEvaluator, DetectionRecord
from lustral.evaluation.evaluator import Evaluator
from lustral.evaluation.fingerprint import Fingerprint
from lustral.evaluation.intervals import Rate, bootstrap, compare, wilson
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import Key, KeyedRecord, Record, RecordFolder, read_records
from lustral.evaluation.selfcheck import self_check
from lustral.evaluation.verdicts import Expected, Majority, MeanLogit, OneShot, VerdictRule, Worst, all_rules

__all__ = [
    "CorruptionEvaluator",
    "CorruptionRecord",
    "Dealing",
    "Defence",
    "DefenceEvaluator",
    "DetectionEvaluator",
    "DetectionRecord",
    "Evaluator",
    "Expected",
    "Fingerprint",
    "Key",
    "KeyedRecord",
    "Majority",
    "MeanLogit",
    "OneShot",
    "Protocol",
    "Rate",
    "Record",
    "RecordFolder",
    "VerdictRule",
    "Worst",
    "all_rules",
    "bootstrap",
    "check_corruptions",
    "compare",
    "make_card",
    "make_corruption_card",
    "read_records",
    "self_check",
    "wilson",
    "write_card",
]
