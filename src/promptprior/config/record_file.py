"""What a run keeps of itself as a JSON object, read back as the dataclass that it was written from."""

from pathlib import Path

from promptprior.config.mapping import C, from_mapping
from promptprior.errors import ArtifactError, SpecError
from promptprior.files import read_json


def read_record(kind: type[C], path: Path) -> C:
    """The record of a run's folder. Raises ArtifactError, naming the file, what is wrong with it and the folder to
    delete, for one that is damaged."""
    try:
        mapping = read_json(path)
        if not isinstance(mapping, dict):
            raise SpecError(f"{path}: expected a JSON object; got {type(mapping).__name__}")
        return from_mapping(kind, mapping, str(path))
    except (SpecError, ArtifactError) as error:
        raise ArtifactError(f"{error}; delete {path.parent} to begin again") from error
