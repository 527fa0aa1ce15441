"""Settings as frozen dataclasses, to and from YAML and flags. Needs no torch."""
