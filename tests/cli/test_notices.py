"""What the terminal says while work goes on."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from engines.fake_server import Said, serving
from rasa_moe.config.schema import EndpointConfig
from rasa_moe.data.rows import Message
from rasa_moe.engines.http import HttpEngine
from rasa_moe.errors import ModelError


def test_each_retry_is_one_line_without_the_key(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def failing(body: dict[str, Any], number: int) -> Said:
        return Said(status=500, body=b"no \x1b[31m\nfor sk-secret")

    with serving(failing) as server, caplog.at_level(logging.WARNING):
        config = EndpointConfig(url=server.url, model="m", api_key_env="MY_KEY", retries=2)
        with pytest.raises(ModelError, match="in 3 tries"):
            HttpEngine(config, sleep=lambda seconds: None).chat((Message(role="user", content="hello"),))
    told = [record.getMessage() for record in caplog.records if record.name == "rasa_moe.engines.http"]
    assert [f"try {number} of 3" in line for number, line in enumerate(told, start=1)] == [True, True]
    assert all(server.url in line and "HTTP 500" in line and line.isprintable() for line in told)
    assert "sk-secret" not in " ".join(told)
