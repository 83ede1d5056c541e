"""Data sets of the Hugging Face hub, by a name that can stand wherever a file can.

`hf:owner/name@revision#split`, with an optional configuration: `hf:owner/name:config@revision#split`. A
folder written by `Dataset.save_to_disk`, or one with data files, is read the same way: `hf:./folder#train`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.errors import DataError

PREFIX = "hf:"
DEFAULT_SPLIT = "train"
_NAME = re.compile(
    r"^hf:(?P<path>[^@#:]+)(?::(?P<config>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?$"
)


@dataclass(frozen=True)
class HubName:
    """Hold the parts of a data set's name."""

    path: str
    config: str | None
    revision: str | None
    split: str


def is_hub_name(name: str) -> bool:
    """Tell whether a source is a data set of the hub rather than a file."""
    return name.startswith(PREFIX)


def parse_hub_name(name: str) -> HubName:
    """Take a name apart.

    Raises:
        DataError: It does not look like hf:owner/name@revision#split.
    """
    match = _NAME.match(name)
    if match is None:
        raise DataError(f"{name!r} is no data set name; write hf:owner/name@revision#split")
    return HubName(
        path=match["path"],
        config=match["config"],
        revision=match["revision"],
        split=match["split"] or DEFAULT_SPLIT,
    )


def read_hub(name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set; it is downloaded, or taken from the local cache.

    Raises:
        DataError: The name is wrong, or the data set, its revision or its split cannot be had.
    """
    wanted = parse_hub_name(name)
    try:
        rows = _load(wanted)
        yield from (dict(row) for row in rows)
    except DataError:
        raise
    # The library raises ValueError, OSError, its own errors and those of the network beneath it.
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name} cannot be loaded ({reason}); check the name, the split and the connection, "
            "or save the set to a file"
        ) from error


def _load(wanted: HubName) -> Any:
    import datasets

    folder = Path(wanted.path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        stored = datasets.load_from_disk(str(folder))
        if not isinstance(stored, datasets.DatasetDict):
            return stored
        if wanted.split not in stored:
            raise DataError(f"{folder} has no split {wanted.split!r}; it has {', '.join(stored)}")
        return stored[wanted.split]
    return datasets.load_dataset(wanted.path, wanted.config, revision=wanted.revision, split=wanted.split)
