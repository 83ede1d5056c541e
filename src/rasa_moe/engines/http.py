"""Answers from any server that speaks OpenAI's chat protocol: vLLM, SGLang, `transformers serve`, a paid one.

Many requests run at once, each is tried again with growing pauses, a server that asks for a pause gets it
from every thread, and what was answered once is never asked again in the same run directory.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.config.schema import EndpointConfig
from rasa_moe.data.rows import Message
from rasa_moe.data.thinking import told
from rasa_moe.engines.local import LEFT_OUT, Answer
from rasa_moe.engines.transport import Reply, post, require_address, shown_url
from rasa_moe.errors import REFUSALS, ConfigError, ModelError, RequestRefused
from rasa_moe.files import sha256_json
from rasa_moe.kept import Kept
from rasa_moe.progress import Progress, no_progress

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 120.0
Post = Callable[..., Reply]


@dataclass(frozen=True)
class Usage:
    """Count what was asked of a server: calls, and tokens as the server counts them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept: int = 0


class HttpEngine:
    """Ask one model on one server.

    Args:
        config: Where it is and how it may be asked.
        answered: File of the run directory that keeps answers; None keeps nothing.
        thinking: Switches thinking in the template of the served model, in vLLM's way, which SGLang and
            `transformers serve` understand; None for a template without that switch, since strict servers
            refuse what they do not know.
        send: Sends one request; tests put their own.
        sleep: Waits; tests put their own.
        clock: Seconds that only grow.

    Raises:
        ConfigError: No address or model is set, or the variable that holds the access key is not.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        answered: Path | None = None,
        thinking: bool | None = None,
        send: Post = post,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not config.url or not config.model:
            raise ConfigError(
                "A server needs both url and model, such as http://localhost:8000/v1 and its name."
            )
        require_address(config.url)
        self.config = config
        self._key = _access_key(config)
        self._answered = Kept(answered)
        self._extra: dict[str, Any] = {}
        if thinking is not None:
            self._extra["chat_template_kwargs"] = {"enable_thinking": thinking}
        self._send, self._sleep, self._clock = send, sleep, clock
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._usage = Usage()
        self._jitter = random.Random(0)

    @property
    def usage(self) -> Usage:
        """What was asked so far; answers taken from the run directory count as kept."""
        return self._usage

    def chat(self, messages: Sequence[Message]) -> str:
        """Return the reply to one conversation, without thoughts; for attackers and judges.

        Raises:
            ModelError: The server refuses, or gives no usable answer after all retries.
        """
        return self.answer(messages).text

    def answer(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, repeat: int = 0
    ) -> Answer:
        """Answer one conversation.

        Args:
            messages: Ends with the user's turn.
            max_new_tokens: Longest answer; None for the configured one.
            repeat: Tells equal requests apart that are to be sampled anew.

        Raises:
            ModelError: The server refuses, or gives no usable answer after all retries.
        """
        request = {
            "model": self.config.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_new_tokens or self.config.max_tokens,
            "temperature": self.config.temperature,
            **self._extra,
        }
        key = sha256_json([request, repeat])
        kept = self._answered.get(key)
        if kept is None:
            kept = self._ask(request)
            self._answered.put(key, kept)
        else:
            self._count(kept=1)
        parted = told(str(kept["content"]))
        return Answer(
            text=parted.text,
            is_truncated=kept["finish_reason"] == "length",
            num_tokens=int(kept["completion_tokens"]),
            thinking="\n".join(part for part in (str(kept["reasoning"]), parted.thinking) if part),
        )

    def answers(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        label: str = "generate",
        progress: Progress = no_progress,
    ) -> list[Answer]:
        """Answer every conversation, several at a time, in the order asked.

        Single ones that the server refuses, as too long for it or by a filter of its own, are left out.

        Raises:
            ModelError: As `answer`, or the first conversations are all refused; what was answered until then
                is kept in the run directory.
        """
        done = answered = 0
        lock = threading.Lock()
        refused: list[RequestRefused] = []
        # Were it requests as such that are refused, all of them would be sent for nothing.
        most = min(len(conversations), REFUSALS)

        def one(conversation: Sequence[Message]) -> Answer:
            nonlocal done, answered
            if not answered and len(refused) >= most:
                raise refused[0]
            try:
                found = self.answer(conversation, max_new_tokens=max_new_tokens)
                answered += 1
            except RequestRefused as error:
                refused.append(error)
                if not answered and len(refused) >= most:
                    raise
                found = LEFT_OUT
            with lock:
                done += 1
                progress(label, done, len(conversations))
            return found

        pool = ThreadPoolExecutor(max_workers=self.config.concurrency)
        futures: list[Future[Answer]] = [pool.submit(one, conversation) for conversation in conversations]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # after an error, and after Ctrl-C, nothing more is asked
            pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if not future.cancelled() and (error := future.exception()):
                raise error
        return [future.result() for future in futures]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered."""
        body = json.dumps(request).encode()
        reason = ""
        for attempt in range(self.config.retries + 1):
            self._wait_for_turn()
            reply = self._send(
                f"{self.config.url.rstrip('/')}/chat/completions",
                body,
                key=self._key,
                timeout_seconds=self.config.timeout_seconds,
            )
            self._count(calls=1)
            if reply.body is not None:
                answer, reason = _read_answer(reply.body)
                if answer is not None:
                    self._count(
                        prompt_tokens=answer["prompt_tokens"], completion_tokens=answer["completion_tokens"]
                    )
                    return answer
            else:
                reason = reply.reason
            if attempt < self.config.retries:
                self._tell(attempt, reason)
                self._pause(attempt, reply.wait_seconds)
        raise ModelError(
            f"The server at {shown_url(self.config.url)} gave no answer in {self.config.retries + 1} tries "
            f"({reason}); start it, or give the same command again later: what was answered is kept."
        )

    def _tell(self, attempt: int, reason: str) -> None:
        """Warn that a try failed; `reason` is without the access key, but holds words of the server."""
        said = "".join(letter if letter.isprintable() else " " for letter in reason)
        logger.warning(
            "%s: try %d of %d gave no answer (%s); asking again.",
            shown_url(self.config.url), attempt + 1, self.config.retries + 1, said,
        )  # fmt: skip

    def _wait_for_turn(self) -> None:
        """Keep the rate limit, and any pause that the server asked for."""
        spacing = 60.0 / self.config.requests_per_minute if self.config.requests_per_minute else 0.0
        with self._lock:
            now = self._clock()
            start = max(now, self._next_start)
            self._next_start = start + spacing
        if start > now:
            self._sleep(start - now)

    def _pause(self, attempt: int, asked_seconds: float | None) -> None:
        """Wait before the next try: as long as the server asks, else twice as long as before."""
        if asked_seconds is not None:
            # Every thread holds back, not only the one that was told.
            with self._lock:
                pause = min(asked_seconds, _LONGEST_PAUSE_SECONDS)
                self._next_start = max(self._next_start, self._clock() + pause)
            return
        pause = min(_FIRST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
        with self._lock:
            pause *= self._jitter.uniform(0.5, 1.0)
        self._sleep(pause)

    def _count(self, **more: int) -> None:
        with self._lock:
            values = {name: getattr(self._usage, name) + value for name, value in more.items()}
            self._usage = Usage(**{**vars(self._usage), **values})


def _access_key(config: EndpointConfig) -> str:
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if any(not " " < letter <= "~" for letter in key):
        raise ConfigError(
            f"The access key in the environment variable {config.api_key_env} holds blanks or characters "
            "that no request can carry; export it again."
        )
    if not key:
        raise ConfigError(
            f"The access key for {shown_url(config.url)} should be in the environment variable "
            f"{config.api_key_env}, which is not set; export it, or leave api_key_env empty."
        )
    return key


def _read_answer(body: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return what is kept of a reply, or None and what is wrong with it."""
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        usage = reply.get("usage") or {}
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        answer = {
            "content": _whole(message.get("content") or ""),
            "reasoning": _whole(reasoning),
            "finish_reason": _whole(choice.get("finish_reason") or ""),
            "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "completion_tokens": int(usage.get("completion_tokens") or 0),
        }
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return None, f"its reply is no chat completion ({type(error).__name__})"
    return answer, ""


def _whole(text: object) -> str:
    """Return text without halves of characters, which JSON can spell and no file can hold."""
    return str(text).encode("utf-8", errors="replace").decode("utf-8")
