"""Nothing is sent without being asked for, only the checkpoint is sent, and the token is told to nobody."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rasa_moe.cli import main
from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.export import push


class FakeHub:
    """Keep what is asked of the hub."""

    def __init__(self, error: Exception | None = None, *, is_public: bool = False) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error = error
        self.is_public = is_public

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))

    def repo_info(self, repo_id: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(private=not self.is_public)

    def upload_folder(self, **options: Any) -> None:
        if self.error:
            raise self.error
        self.asked.append(("upload_folder", options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "notes.private", ".env"):
        (tmp_path / name).write_text("x" * 10)
    return tmp_path


def test_only_the_checkpoint_is_packed(folder: Path) -> None:
    parcel = push.pack(folder, "me/model", is_private=True)
    assert [name for name, _ in parcel.files] == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert parcel.num_bytes == 40


def test_sending_names_the_files_and_hides_the_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = FakeHub()
    parcel = push.pack(folder, "me/model", is_private=True)
    assert push.send(parcel, folder, hub=hub) == "https://huggingface.co/me/model"
    (made, options), (sent, upload) = hub.asked
    assert (made, options["private"], sent) == ("create_repo", True, "upload_folder")
    assert upload["allow_patterns"] == [name for name, _ in parcel.files]
    with pytest.raises(ModelError) as caught:
        push.send(parcel, folder, hub=FakeHub(ValueError("403 for hf_secret")))
    assert "hf_secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_public_repository_gets_nothing_that_was_to_be_private(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for is_private in (True, False):
        hub = FakeHub(is_public=True)
        parcel = push.pack(folder, "me/model", is_private=is_private)
        with pytest.raises(ConfigError, match="is there and public") if is_private else nullcontext():
            push.send(parcel, folder, hub=hub)
        assert [name for name, _ in hub.asked] == ["create_repo"] + ["upload_folder"] * (not is_private)


def test_without_a_token_nothing_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = FakeHub()
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        push.send(push.pack(folder, "me/model", is_private=True), folder, hub=hub)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["model", "me/", "a/b/c", "../x", "me/model?x"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name on the hub"):
        push.pack(folder, name, is_private=True)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "README.md"])
def test_a_folder_that_is_no_checkpoint_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError):
        push.pack(folder, "me/model", is_private=True)


def test_the_command_only_shows_what_it_would_send(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["push", str(folder), "me/model"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "Nothing was sent" in shown
    assert "model.safetensors" in shown and "notes.private" not in shown
