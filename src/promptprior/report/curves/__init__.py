"""Scores against something that is a scale: steps of adaptation, or the values of a swept setting."""
