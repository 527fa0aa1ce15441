"""The verbs with which people share what they made: priors, prompts and results, on the Hub and on one page."""
