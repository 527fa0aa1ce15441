"""Forms that give every text its own prompt, retrieved or mixed from what its words ask for."""
