"""Send an exported checkpoint to the Hugging Face hub; without --yes only say what would be sent."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.export.card import CARD_FILE

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Everything a served checkpoint consists of; nothing else leaves the machine.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", CARD_FILE)
TOKEN_VARIABLE = "HF_TOKEN"


class Hub(Protocol):
    """What is needed of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool, token: str) -> Any:
        """Make a repository."""

    def repo_info(self, repo_id: str, *, token: str) -> Any:
        """Return what is known of it; `private` is a bool."""

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str, token: str
    ) -> Any:
        """Send the files of a folder."""


@dataclass(frozen=True)
class Parcel:
    """Say what is sent where.

    Attributes:
        repository: Name on the hub, "owner/name".
        files: Names and sizes in bytes.
        is_private: Whether a repository that is made for it is private.
    """

    repository: str
    files: tuple[tuple[str, int], ...]
    is_private: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


def pack(directory: Path, repository: str, *, is_private: bool) -> Parcel:
    """List what would be sent.

    Raises:
        ConfigError: The name is not of the form owner/name.
        ModelError: The folder is no exported checkpoint, or it has no model card.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"'{repository}' is no name on the hub; give owner/name.")
    files = sorted(
        {file for pattern in _PATTERNS for file in Path(directory).glob(pattern) if file.is_file()}
    )
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{directory} is no exported checkpoint; make one with: rasa-moe export RUN_DIR DEST"
        )
    if CARD_FILE not in names:
        raise ModelError(f"{directory} has no model card ({CARD_FILE}); export it from its run directory.")
    return Parcel(
        repository=repository,
        files=tuple((file.name, file.stat().st_size) for file in files),
        is_private=is_private,
    )


def send(parcel: Parcel, directory: Path, *, hub: Hub | None = None) -> str:
    """Send a parcel; the access token comes from the environment and is written nowhere.

    Args:
        parcel: What `pack` listed.
        directory: The folder it was listed from.
        hub: The hub; None for the real one.

    Returns:
        Where it can be seen.

    Raises:
        ConfigError: There is no access token, or a repository of that name is public and the parcel is not.
        ModelError: The hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ConfigError(f"Sending needs an access token with write rights in {TOKEN_VARIABLE}.")
    hub = hub or HfApi()
    try:
        hub.create_repo(parcel.repository, private=parcel.is_private, exist_ok=True, token=token)
        # One that exists keeps its visibility, whatever was asked for.
        is_public = not hub.repo_info(parcel.repository, token=token).private
        if is_public and parcel.is_private:
            raise ConfigError(
                f"'{parcel.repository}' is there and public; give --public to send to it, or another name."
            )
        hub.upload_folder(
            repo_id=parcel.repository,
            folder_path=str(directory),
            allow_patterns=[name for name, _ in parcel.files],
            commit_message="Safety repaired with rasa-moe",
            token=token,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).replace(token, "***").strip().splitlines() or [type(error).__name__]
        raise ModelError(f"The hub did not take '{parcel.repository}': {reason[0]}") from None
    return f"https://huggingface.co/{parcel.repository}"
