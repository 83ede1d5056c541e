"""Write a directory so that it appears complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from rasa_moe.errors import ModelError
from rasa_moe.files import disk_full, is_disk_full, reported

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def finished_directory(directory: Path, *, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty directory beside `directory` that takes its name when the block ends without an error.

    Args:
        directory: Where the result is to stand.
        replaceable: Names of files that may stand there already and are replaced as a whole.

    Raises:
        ModelError: `directory` holds anything else; it is left as it is.
        RunError: The disk is full or the place cannot be written.
    """
    with reported(directory):
        if directory.exists() and not _may_replace(directory, replaceable):
            raise ModelError(
                f"{directory} exists already and is not empty; nothing was written, choose another name."
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            unfinished.chmod(0o755)
            yield unfinished
            # The safetensors writer lets nobody but the owner read, which stops a server of another account.
            for file in unfinished.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
            if directory.is_dir():
                shutil.rmtree(directory)
            unfinished.rename(directory)
        except SafetensorError as error:
            # The safetensors writer reports a full disk in words of its own.
            if is_disk_full(error):
                raise disk_full(directory) from error
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _may_replace(directory: Path, replaceable: Collection[str]) -> bool:
    return directory.is_dir() and all(entry.name in replaceable for entry in directory.iterdir())


def export_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path
) -> None:
    """Save a model in the ordinary layout of its family (one tensor per expert where the family has that).

    Args:
        model: The model; merge open expert slices first.
        tokenizer: Saved beside it, or None.
        directory: Must not exist, or be empty. It appears only when everything is written.

    Raises:
        ModelError: The directory exists and is not empty.
        RunError: The disk is full or the place cannot be written.
    """
    with finished_directory(Path(directory)) as unfinished:
        model.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
