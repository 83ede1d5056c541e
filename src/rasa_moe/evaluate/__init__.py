"""Measure safety, over-refusal and ability, each with its uncertainty."""
