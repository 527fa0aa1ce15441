"""Packed batches, and the hand-written gradients of what reads them."""
