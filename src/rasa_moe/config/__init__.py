"""The configuration of a run: one schema, read from YAML, written back with its descriptions as comments."""

from rasa_moe.config.load import differences, load_config
from rasa_moe.config.rates import learning_rate, setting
from rasa_moe.config.rivals import FullConfig
from rasa_moe.config.schema import Config
from rasa_moe.config.stages import (
    AlignConfig,
    AuditConfig,
    CollectConfig,
    DataConfig,
    DetectConfig,
    EvaluateConfig,
)
from rasa_moe.config.text import config_text

__all__ = [
    "AlignConfig",
    "AuditConfig",
    "CollectConfig",
    "Config",
    "DataConfig",
    "DetectConfig",
    "EvaluateConfig",
    "FullConfig",
    "config_text",
    "differences",
    "learning_rate",
    "load_config",
    "setting",
]
