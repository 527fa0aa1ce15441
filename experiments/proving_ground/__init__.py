"""The proving ground: a world where every answer is known, and a cell costs milliseconds (docs/proving_ground.md)."""
