"""Single test examples: what methods answered to them, kept beside results, and how the page shows it."""
