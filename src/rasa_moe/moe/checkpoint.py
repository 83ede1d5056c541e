"""Read what a checkpoint holds from the headers of its files, without reading a weight.

Which stored tensors make which parameter is transformers' own knowledge (experts are one tensor each on the
disk and one tensor together in memory); it is asked, not repeated here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from rasa_moe.errors import ModelError
from rasa_moe.moe.families import refuse_unsupported

_SUFFIX = ".safetensors"
# Far above any real header; a damaged file must not make us read gigabytes as text.
_LARGEST_HEADER = 256 << 20
_LENGTH = struct.Struct("<Q")
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """Say where a tensor lies: bytes `start` to `end` of `file`.

    Attributes:
        file: The safetensors file.
        dtype: Its type as safetensors names it, such as "BF16".
        shape: Its shape.
        start: First byte, from the beginning of the file.
        end: One past its last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """Return the tensor, and nothing else of the file.

        Raises:
            ModelError: It is stored in a type that this project does not write, such as a quantised one.
        """
        if self.dtype not in DTYPES:
            raise ModelError(
                f"{self.file} holds tensors of type {self.dtype}; only {', '.join(DTYPES)} can be changed, "
                "so use a checkpoint that is not quantised."
            )
        with open(self.file, "rb") as file:
            file.seek(self.start)
            data = bytearray(file.read(self.end - self.start))
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(self.shape)

    def write(self, file: Path, tensor: Tensor) -> None:
        """Overwrite the tensor's bytes in `file`, a copy of its own file."""
        assert tensor.shape == self.shape and tensor.dtype == DTYPES[self.dtype]
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        assert len(data) == self.end - self.start
        with open(file, "r+b") as opened:
            opened.seek(self.start)
            opened.write(data)


@dataclass(frozen=True)
class Checkpoint:
    """Hold what the safetensors files of a folder say about themselves.

    Attributes:
        directory: The folder.
        tensors: Stored name -> where it lies.
    """

    directory: Path
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read the headers of every safetensors file that the checkpoint consists of.

        Raises:
            ModelError: There is none, a file named by the index is missing, or a header is damaged.
        """
        directory = Path(directory)
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(_weight_map(index).values()))
        else:
            names = sorted(file.name for file in directory.glob(f"*{_SUFFIX}"))
        if not names:
            raise ModelError(
                f"{directory} holds no safetensors weights; convert the checkpoint with save_pretrained."
            )
        tensors: dict[str, StoredTensor] = {}
        for name in names:
            tensors |= _header(directory / name)
        return cls(directory=directory, tensors=tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.end - tensor.start for tensor in self.tensors.values())


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} cannot be read ({error}); get the whole checkpoint again.") from error
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} points outside its folder ({outside[0]!r}); do not use this checkpoint.")
    return weight_map


def _header(file: Path) -> dict[str, StoredTensor]:
    """Return what one safetensors file holds; every offset is held against the file's size."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            (length,) = _LENGTH.unpack(opened.read(_LENGTH.size))
            if length > min(_LARGEST_HEADER, size):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(opened.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        begin = _LENGTH.size + length
        tensors = {
            name: StoredTensor(
                file=file,
                dtype=str(entry["dtype"]),
                shape=tuple(int(side) for side in entry["shape"]),
                start=begin + int(entry["data_offsets"][0]),
                end=begin + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if any(not begin <= tensor.start <= tensor.end <= size for tensor in tensors.values()):
            raise ValueError("it is cut off")
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise ModelError(
            f"{file} is missing or damaged ({error}); get the whole checkpoint again."
        ) from error
    return tensors


def empty_model(
    path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """Build a model from its config alone, on the meta device: names and shapes, no weights.

    Raises:
        ModelError: The config cannot be read, or no model can be built from it.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        # Families of other libraries may have a config that cannot be built; their name is enough.
        raw, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        refuse_unsupported(str(raw.get("model_type", "")))
        config = AutoConfig.from_pretrained(path, revision=revision, **options)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"No model can be built from the config of '{path}' ({reason}); give a model directory or a "
            "Hugging Face name."
        ) from error
    return model.eval()


@dataclass(frozen=True)
class Sources:
    """Say which stored tensors make which parameters.

    Attributes:
        of: Parameter or buffer name -> stored names, in natural order.
        missing: Parameters that no stored tensor makes, and that are not tied to one that is.
        unexpected: Stored names that make no parameter; transformers leaves them out.
        mismatched: Parameters whose stored tensors hold more or fewer values than the model has.
    """

    of: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def sources_of(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> Sources:
    """Match stored names with the parameters of a model as `from_pretrained` would."""
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    made: dict[str, list[str]] = {}
    unexpected: list[str] = []
    for name in sorted(stored, key=_natural):
        targets, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if targets not in known and name in known:
            targets, pattern = name, None
        if targets not in known:
            unexpected.append(name)
            continue
        for target in _all_targets(targets, pattern, converters):
            made.setdefault(target, []).append(name)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = set(model.all_tied_weights_keys)
    missing = sorted(parameters - made.keys() - tied)
    return Sources(
        of={name: tuple(sources) for name, sources in made.items()},
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=_mismatched(made, stored, known),
    )


def _mismatched(
    made: Mapping[str, list[str]], stored: Mapping[str, StoredTensor], known: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Compare numbers of values: loading only moves values around, whatever it stacks or cuts."""
    together: dict[tuple[str, ...], list[str]] = {}
    for target, sources in made.items():
        together.setdefault(tuple(sources), []).append(target)
    return tuple(
        targets[0]
        for sources, targets in together.items()
        if sum(math.prod(stored[name].shape) for name in sources)
        != sum(known[target].numel() for target in targets if target in known)
    )


def _all_targets(first: str, pattern: str | None, converters: list[WeightConverter]) -> list[str]:
    """Return every parameter one stored tensor contributes to: a conversion may cut it into several."""
    if pattern is None:
        return [first]
    converter = next(entry for entry in converters if pattern in entry.source_patterns)
    return [first.replace(converter.target_patterns[0], target) for target in converter.target_patterns]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort experts by number: 2 before 10, as they are stacked."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
