"""The protocol: what an evaluation measures, besides defence, attack and threat model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The number of draws in a verdict, and the extent of the audit.

    Args:
        verdict_draws: k, draws of logits stored for each clean and each adversarial image, at least 1; every verdict
            rule is computed from them.
        audit_images: number of images, a random sample of the tested ones, that are audited with further attacks. With
            0 the card says `unaudited`.
        known_noise: on audited images, also attack a defence whose verdict noise the attacker knows.
        replicates: for a defence that judges groups, the number of random partitions of the tested images into groups,
            each with noise of its own; at least 1. Verdicts within a group are not independent, so many groups are
            needed. 1 for all other defences. It changes no record, so a run may be extended by more.

    Raises:
        ValueError: if a number is out of its range.
    """

    verdict_draws: int = 16
    audit_images: int = 16
    known_noise: bool = True
    replicates: int = 1

    def __post_init__(self) -> None:
        if self.verdict_draws < 1:
            raise ValueError(f"protocol.verdict_draws is {self.verdict_draws}; it must be at least 1.")
        if self.audit_images < 0:
            raise ValueError(f"protocol.audit_images is {self.audit_images}; it cannot be negative.")
        if self.replicates < 1:
            raise ValueError(f"protocol.replicates is {self.replicates}; it must be at least 1.")
