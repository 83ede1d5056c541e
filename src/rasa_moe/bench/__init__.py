"""Measure what the method costs beside the other ways of doing the same, in one run: `rasa-moe bench`."""
