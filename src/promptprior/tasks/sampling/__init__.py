"""From tasks to batches: draws that a seed and a step decide."""
