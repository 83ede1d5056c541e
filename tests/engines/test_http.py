"""The client against a real server on loopback that fails in every way servers fail."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engines.fake_server import Said, Server, serving
from rasa_moe.config.schema import EndpointConfig
from rasa_moe.data.rows import Message
from rasa_moe.engines import generate
from rasa_moe.engines.http import HttpEngine, Usage
from rasa_moe.engines.transport import post, retry_after, shown_url
from rasa_moe.errors import REFUSALS, ConfigError, ModelError, RequestRefused, RunError
from rasa_moe.files import write_text
from rasa_moe.kept import Kept

HELLO = (Message(role="user", content="hello"),)


def conversations(number: int) -> list[tuple[Message, ...]]:
    return [(Message(role="user", content=f"question {index}"),) for index in range(number)]


def engine(server: Server, **options: Any) -> HttpEngine:
    """Return an engine that does not really wait between tries."""
    settings = {key: value for key, value in options.items() if key in EndpointConfig.model_fields}
    others = {key: value for key, value in options.items() if key not in settings}
    config = EndpointConfig(url=server.url, model="tiny", **settings)
    return HttpEngine(config, **{"sleep": lambda seconds: None, **others})


def echo(body: dict[str, Any], number: int) -> Said:
    return Said(text=f"about {body['messages'][-1]['content']}")


def test_a_conversation_is_sent_as_it_is_and_the_reply_comes_back() -> None:
    messages = (Message(role="system", content="be brief"), *HELLO)
    with serving(echo) as server:
        found = engine(server, max_tokens=9)
        assert found.chat(messages) == "about hello"
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "tiny", "messages": [dict(m) for m in messages], "max_tokens": 9, "temperature": 0.0
    }  # fmt: skip
    assert "Authorization" not in asked.headers
    assert found.usage == Usage(calls=1, prompt_tokens=7, completion_tokens=3)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_template_that_can_switch_thinking_is_told(enabled: bool) -> None:
    with serving(echo) as server:
        engine(server, thinking=enabled).chat(HELLO)
    assert server.asked[0].body["chat_template_kwargs"] == {"enable_thinking": enabled}


def test_answers_come_in_the_order_asked_several_at_a_time() -> None:
    def slow_first(body: dict[str, Any], number: int) -> Said:
        return Said(text=body["messages"][0]["content"], seconds=0.15 if number == 1 else 0.05)

    seen: list[tuple[str, int, int]] = []
    with serving(slow_first) as server:
        answers = engine(server, concurrency=3).answers(
            conversations(9), max_new_tokens=5, progress=lambda *step: seen.append(step)
        )
    assert [answer.text for answer in answers] == [f"question {index}" for index in range(9)]
    assert max(asked.under_way for asked in server.asked) == 3
    assert sorted(done for _, done, _ in seen) == list(range(1, 10))


def test_an_engine_takes_the_place_of_a_model() -> None:
    with serving(echo) as server:
        answers = generate(engine(server), None, conversations(2), max_new_tokens=5)
    assert [answer.text for answer in answers] == ["about question 0", "about question 1"]


@pytest.mark.parametrize(
    "failure",
    [
        Said(status=500, body=b"oops"),
        Said(status=429, body=b"slow down"),
        Said(status=503, body=b""),
        Said(body=b"<html>"),
        Said(body=b"[]"),
        Said(body=b'{"choices": []}'),
        Said(body=b'{"choices": [{"message": null}]}'),
    ],
    ids=lambda said: f"{said.status} {said.body!r}",
)
def test_failures_are_tried_again_with_growing_pauses(failure: Said) -> None:
    pauses: list[float] = []
    with serving(lambda body, number: failure if number < 4 else Said(text="at last")) as server:
        assert engine(server, sleep=pauses.append).chat(HELLO) == "at last"
    assert len(server.asked) == 4
    for pause, longest in zip(pauses, (1, 2, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_after_the_last_try_the_sentence_says_why() -> None:
    refusal = pytest.raises(ModelError, match=r"no answer in 3 tries \(HTTP 502: bad gateway\)")
    with serving(lambda body, number: Said(status=502, body=b"bad gateway")) as server, refusal:
        engine(server, retries=2).chat(HELLO)
    assert len(server.asked) == 3


def test_a_server_that_is_not_there_is_tried_again_too() -> None:
    with serving(echo) as server:
        pass
    with pytest.raises(ModelError, match="no answer in 2 tries"):
        engine(server, retries=1).chat(HELLO)


def test_a_server_that_is_too_slow_is_left() -> None:
    with serving(lambda body, number: Said(seconds=0.6 if number == 1 else 0.0)) as server:
        start = time.monotonic()
        assert engine(server, timeout_seconds=0.2).chat(HELLO) == "fine"
        assert time.monotonic() - start < 5
    assert len(server.asked) == 2


@pytest.mark.parametrize("asked", ["seconds", "date"])
def test_a_server_that_asks_for_a_pause_gets_it_from_every_thread(asked: str) -> None:
    """Time stands still unless somebody sleeps; sleeping is counted, not done."""
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
    header, expected = {"seconds": ("7", 7), "date": (in_an_hour, 120)}[asked]
    now = 100.0
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        nonlocal now
        with lock:
            now += seconds

    said = Said(status=429, headers={"Retry-After": header}, body=b"wait")
    with serving(lambda body, number: said if number == 1 else Said()) as server:
        found = engine(server, concurrency=1, sleep=sleep, clock=lambda: now)
        found.answers(conversations(2), max_new_tokens=3)
    assert now - 100.0 == pytest.approx(expected, abs=1), "an hour is too long to wait"


def test_the_rate_limit_spaces_the_starts() -> None:
    now = 0.0
    starts: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def answer(body: dict[str, Any], number: int) -> Said:
        starts.append(now)
        return Said()

    with serving(answer) as server:
        found = engine(server, requests_per_minute=30.0, concurrency=1, sleep=sleep, clock=lambda: now)
        found.answers(conversations(4), max_new_tokens=3)
    assert starts == pytest.approx([0, 2, 4, 6])


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "check the key"), (403, "check the key"), (404, "model's name"), (400, "refuses")],
)
def test_what_asking_again_cannot_change_ends_at_once(status: int, sentence: str) -> None:
    refusal = pytest.raises(ModelError, match=sentence)
    with serving(lambda body, number: Said(status=status, body=b"no")) as server, refusal:
        engine(server).chat(HELLO)
    assert len(server.asked) == 1


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    leaky = Said(status=401, body=b"wrong key sk-very-secret")
    with serving(lambda body, number: Said() if number == 1 else leaky) as server:
        found = engine(server, api_key_env="MY_KEY", answered=tmp_path / "answers.jsonl")
        assert found.chat(HELLO) == "fine"
        with pytest.raises(ModelError) as caught:
            found.chat((Message(role="user", content="other"),))
    assert server.asked[0].headers["Authorization"] == "Bearer sk-very-secret"
    told = str(caught.value) + repr(found.config) + (tmp_path / "answers.jsonl").read_text()
    assert "secret" not in told + "".join(capfd.readouterr())


def test_a_redirect_does_not_carry_the_key_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving(echo) as elsewhere:
        moved = Said(status=307, headers={"Location": f"{elsewhere.url}/chat/completions"}, body=b"")
        refusal = pytest.raises(ModelError, match="HTTP 307")
        with serving(lambda body, number: moved) as server, refusal:
            engine(server, api_key_env="MY_KEY").chat(HELLO)
    assert elsewhere.asked == []


def test_a_missing_key_or_address_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY, which is not set"):
        HttpEngine(EndpointConfig(url="http://host/v1", model="m", api_key_env="MY_KEY"))
    for config in (
        EndpointConfig(),
        EndpointConfig(url="http://x"),
        EndpointConfig(url="file:///x", model="m"),
    ):
        with pytest.raises(ConfigError):
            HttpEngine(config)
    assert shown_url("https://user:pass@host:8000/v1?key=1") == "https://host:8000/v1"


def test_an_address_that_is_none_or_holds_a_secret_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "http://HOST:PORT/v1", "http://[bad/v1", "http:///v1", "https://user:hunter2@host/v1", "http://a b/v1"
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="The url names no server") as caught:
            HttpEngine(EndpointConfig(url=url, model="m"))
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(ConfigError, match="MY_KEY holds blanks") as caught:
        HttpEngine(EndpointConfig(url="http://host/v1", model="m", api_key_env="MY_KEY"))
    assert "sk-secret" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-secret\n")  # as `$(cat file)` in a .env writes it
    with serving(echo) as server:
        engine(server, api_key_env="MY_KEY").chat(HELLO)
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"


def test_single_requests_that_are_refused_are_left_out_and_all_of_them_is_an_error() -> None:
    with serving(lambda body, number: Said(status=400) if number == 2 else echo(body, number)) as server:
        found = engine(server, concurrency=1).answers(conversations(3), max_new_tokens=5)
    assert [answer.is_left_out for answer in found] == [False, True, False]
    for number, most in ((3, 3), (200, REFUSALS + 4)):  # those under way are not called back
        refused = pytest.raises(RequestRefused, match="HTTP 400")
        with serving(lambda body, number: Said(status=400)) as server, refused:
            engine(server, concurrency=4).answers(conversations(number), max_new_tokens=5)
        assert len(server.asked) <= most


def test_nothing_more_is_asked_after_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(futures: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rasa_moe.engines.http.wait", interrupted)
    slow = lambda body, number: Said(text="x", seconds=0.1)  # noqa: E731
    with serving(slow) as server, pytest.raises(KeyboardInterrupt):
        engine(server, concurrency=2).answers(conversations(50), max_new_tokens=5)
    assert len(server.asked) <= 4


def test_halves_of_characters_in_a_reply_can_be_written(tmp_path: Path) -> None:
    with serving(lambda body, number: Said(text="half \ud83d")) as server:
        found = engine(server).answer(HELLO)
    assert found.text == "half ?"
    write_text(tmp_path / "kept.txt", "half \ud83d")
    assert (tmp_path / "kept.txt").read_text() == "half ?"


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "run" / "answers.jsonl"
    with serving(lambda body, number: echo(body, number) if number < 4 else Said(status=404)) as server:
        first = engine(server, answered=file, concurrency=1)
        with pytest.raises(ModelError):
            first.answers(conversations(6), max_new_tokens=5)
    with open(file, "a") as opened:
        opened.write('{"key": "half a li')  # killed while it wrote
    with serving(echo) as server:
        found = engine(server, answered=file, concurrency=1)
        texts = [answer.text for answer in found.answers(conversations(6), max_new_tokens=5)]
    assert texts == [f"about question {index}" for index in range(6)]
    assert [asked.body["messages"][0]["content"] for asked in server.asked] == [
        "question 3", "question 4", "question 5"
    ]  # fmt: skip
    assert found.usage.kept == 3
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 6
    with serving(echo) as server:  # another limit is another request; so is a repeat
        again = engine(server, answered=file)
        again.answer(conversations(1)[0], max_new_tokens=6)
        again.answer(conversations(1)[0], max_new_tokens=5, repeat=1)
    assert len(server.asked) == 2


def test_a_damaged_file_of_answers_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"key": "a", "content": "x"}\nnonsense\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        Kept(file)


def test_cut_off_answers_and_thoughts_are_told_apart() -> None:
    replies = [
        Said(text="cut of", finish="length"),
        Said(text="<think>hm</think>Mix."),
        Said(text="Mix.", message={"reasoning_content": "hm"}),
        Said(message={"content": None}),
    ]
    with serving(lambda body, number: replies[number - 1]) as server:
        answers = [engine(server).answer(HELLO, repeat=number) for number in range(4)]
    assert [answer.is_truncated for answer in answers] == [True, False, False, False]
    assert [answer.text for answer in answers] == ["cut of", "Mix.", "Mix.", ""]
    assert [answer.thinking for answer in answers] == ["", "hm", "hm", ""]
    assert answers[0].num_tokens == 3


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("3") == 3
    assert retry_after("-5") == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_reply_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rasa_moe.engines.transport._LARGEST_REPLY", 1 << 20)
    refusal = pytest.raises(ModelError, match="more than 1 MB")
    with serving(lambda body, number: Said(body=b"x" * ((1 << 20) + 1))) as server, refusal:
        post(server.url, b"{}", key="", timeout_seconds=5)
