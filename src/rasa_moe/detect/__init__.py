"""Find the experts that a successful jailbreak wakes."""
