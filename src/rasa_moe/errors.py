"""Errors that a user can cause and mend: one sentence each, shown without a traceback."""

from __future__ import annotations


class RasaError(Exception):
    """Say in one sentence what happened, where, and what to do."""

    exit_code = 2


class ConfigError(RasaError):
    """Report a configuration that cannot be used."""


class ModelError(RasaError):
    """Report a model or tokenizer that cannot be used."""


REFUSALS = 16
"""Requests of which a server may refuse every one before it counts as refusing all."""


class RequestRefused(ModelError):
    """Report that a server refuses one request; it may answer others."""


class DataError(RasaError):
    """Report rows, pairs or labels that cannot be used."""


class RunError(RasaError):
    """Report a run directory that cannot be used."""


class TrainingError(RasaError):
    """Report a training that cannot go on."""
