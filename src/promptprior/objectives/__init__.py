"""From params to losses and gradients: what a rule minimises."""
