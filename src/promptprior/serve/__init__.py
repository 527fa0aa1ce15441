"""Many prompts behind one frozen model, over HTTP: `promptprior serve`."""
