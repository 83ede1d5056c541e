"""What may explain a different number is recorded: versions and processors."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from rasa_moe import environment
from rasa_moe.environment import changed_facts, describe_environment


def test_processors_are_recorded_and_another_one_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_environment(threads=2)
    assert torch.backends.cpu.get_cpu_capability() in here["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    changed = changed_facts(here, describe_environment(threads=2))
    assert changed.keys() == {"cpu", "gpu"}
    assert changed["cpu"][1].endswith("(DEFAULT)") and changed["gpu"][1] == "NVIDIA H100"


def test_a_system_without_cpuinfo_names_its_processor_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "Path", lambda *_: tmp_path / "missing")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert environment.describe_machine()["cpu"].startswith("arm (")
