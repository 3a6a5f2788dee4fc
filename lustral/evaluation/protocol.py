"""What an evaluation measures, apart from defence, attack and threat."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How many looks a verdict takes, and how much of the run is audited.

    Args:
        verdict_draws: k, draws of logits stored for each clean and each adversarial image; every rule is computed
            from them.
        audit_images: so many images, drawn by key from all that are tested, are audited with attacks of their own. With
            0 the card says `unaudited`.
        known_noise: on audited images, also attack a defence whose verdict noise the attacker knows.
        replicates: partitions of the tested images into groups that are judged, each with noise of its own, where a
            defence judges groups: verdicts on one group depend on each other, so it takes many. 1 for all others. It
            changes no record, so a run may be extended by some.
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
