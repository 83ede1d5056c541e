"""A small client of servers that speak OpenAI's chat protocol: one conversation, one reply, with retries."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from rasa_moe.data.rows import Message
from rasa_moe.errors import ConfigError, ModelError

KEY_VARIABLE = "RASA_MOE_API_KEY"
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Hold where a model is served; the key is read from the environment at each call and never stored.

    Attributes:
        url: Base of the API, such as http://localhost:8000/v1.
        model: Name of the model on that server.
        temperature: 0 for judges, which should repeat themselves.
        max_tokens: Longest reply.
        timeout_seconds: Of one call.
        attempts: Tries before giving up, with a pause that doubles.
        pause_seconds: The first pause.
    """

    url: str
    model: str
    temperature: float = 0.0
    max_tokens: int = 512
    timeout_seconds: float = 120.0
    attempts: int = 4
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no web address: a file: URL would be opened as well."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is no address of a server; write http://HOST:PORT/v1")

    def chat(self, messages: Sequence[Message]) -> str:
        """Return the model's reply.

        Raises:
            ModelError: The server refuses, cannot be reached, or answers in another form.
        """
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        reply = self._post(json.dumps(body).encode("utf-8"))
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ModelError(
                f"{self.url} does not answer in the form of a chat server ({error!r})"
            ) from error
        return content if isinstance(content, str) else ""

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause_seconds * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code not in _RETRIED:
                    break
            except OSError as error:  # also URLError and timeouts
                reason = str(getattr(error, "reason", error))
        raise ModelError(f"{self.url} gives no reply ({reason}); check that it serves {self.model}")
