"""What an artifact remembers of the backbone it was trained on."""

from dataclasses import dataclass

from promptprior.errors import ArtifactError


@dataclass(frozen=True)
class BackboneCard:
    """Identity of a frozen backbone.

    `name` is the Hub id, folder or package it was loaded from, `architecture` the transformers class, `width` D.
    `fingerprint` is sixteen hex digits over its weights and vocabulary, equal on every machine and for every dtype it
    is loaded in. `scale` is the standard deviation of its embedding entries, the unit of every learning rate and noise.
    """

    name: str
    architecture: str
    is_encoder_decoder: bool
    fingerprint: str
    width: int
    scale: float

    def check(self, other: "BackboneCard", where: str) -> None:
        """Raise ArtifactError unless `other`, the backbone at hand, is this one. `where` names the artifact."""
        if self.fingerprint != other.fingerprint:
            raise ArtifactError(
                f"{where} was trained on {self.name} ({self.architecture}, width {self.width}, fingerprint "
                f"{self.fingerprint}) and cannot be used with {other.name} ({other.architecture}, width "
                f"{other.width}, fingerprint {other.fingerprint}); load the backbone it names"
            )
