"""A package outside promptprior that adds two methods with a prompt, two without, and one of everything else."""
