"""The page about architectures says what the tests of this folder show."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures.builders import FAMILIES
from architectures.table import TARGET, page
from rasa_moe.moe.families import REFUSED


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run: python tests/architectures/table.py"


def test_no_family_of_transformers_is_left_undecided() -> None:
    """Whatever has experts in its config is tested or refused with a reason."""
    undecided = [
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if any("expert" in field for field in _fields(CONFIG_MAPPING[name]))
        and name not in FAMILIES
        and name not in REFUSED
    ]
    assert undecided == []


def _fields(config_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
