"""Keep what training changed as an expert patch, tied to one base model: rows of experts, whole routers, and
whole projections of attention where these learned too.

A patch goes on only where every tensor it touches has the bits it was made from, and it comes off again
bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.files import write_json
from rasa_moe.moe.directories import finished_directory
from rasa_moe.moe.fingerprints import dtype_name, sha256_tensor, sha256_with
from rasa_moe.moe.layers import ExpertId, MoeMap
from rasa_moe.moe.sharding import write_rows
from rasa_moe.moe.snapshots import snapshot, touched
from rasa_moe.moe.swap import Piece

FORMAT_VERSION = 1
PATCH_FILE = "patch.safetensors"
BASE_FILE = "base_rows.safetensors"
MANIFEST_FILE = "manifest.json"
_FILES = (PATCH_FILE, BASE_FILE, MANIFEST_FILE)
_APPLIED = "This patch is applied to the model already; go on without applying it, or revert it first."


@dataclass(frozen=True, eq=False)
class ExpertPatch:
    """The difference between a base model and its repair.

    Attributes:
        experts: The experts whose rows may differ.
        after: Parameter name -> rows (k_sel,...) of an expert tensor, or a whole other tensor, as trained.
        before: The same of the base model.
        manifest: Format version, base name and fingerprint, and per touched tensor its name, expert rows
            (null for a whole tensor), shape, dtype and the SHA-256 of the whole tensor before and after.
    """

    experts: tuple[ExpertId, ...]
    after: dict[str, Tensor] = field(repr=False)
    before: dict[str, Tensor] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    def save(self, directory: Path) -> None:
        """Write the patch as a directory of three files; an older patch there is replaced as a whole.

        Raises:
            ModelError: The directory holds other files.
            RunError: The disk is full or the place cannot be written.
        """
        with finished_directory(Path(directory), replaceable=_FILES) as unfinished:
            save_file(self.after, unfinished / PATCH_FILE)
            save_file(self.before, unfinished / BASE_FILE)
            write_json(unfinished / MANIFEST_FILE, self.manifest)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a patch written by `save`.

        Raises:
            ModelError: A file is missing or damaged, or of another format version.
        """
        directory = Path(directory)
        try:
            manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
            after, before = load_file(directory / PATCH_FILE), load_file(directory / BASE_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"No patch can be read from {directory} ({error}); give a directory that holds "
                f"{', '.join(_FILES)}."
            ) from error
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        if version != FORMAT_VERSION:
            raise ModelError(
                f"The patch in {directory} has format version {version}, but this release reads version "
                f"{FORMAT_VERSION}; make the patch again."
            )
        names = {entry["name"] for entry in manifest["tensors"]}
        if names != after.keys() or names != before.keys():
            raise ModelError(
                f"The patch in {directory} is damaged: its files name other tensors than {MANIFEST_FILE}; "
                "make the patch again."
            )
        experts = tuple(ExpertId(layer, expert) for layer, expert in manifest["experts"])
        return cls(experts=experts, after=after, before=before, manifest=manifest)

    def describe(self) -> str:
        """Return a few lines: the base, which experts and tensors are touched, and how far they moved."""
        attention = self.manifest.get("attention", [])
        wholes = [entry["name"] for entry in self.manifest["tensors"] if entry["rows"] is None]
        routers = [name for name in wholes if name not in attention]
        num_layers = len({expert.layer for expert in self.experts})
        touched_names = {
            f"{len(self.experts)} experts in {num_layers} layers": self.after.keys() - wholes,
            f"{len(routers)} router tensors": routers,
        }
        if attention:
            touched_names[f"{len(attention)} projections of attention"] = attention
        base, fingerprint = self.manifest["base_name"], self.manifest["fingerprint"]
        lines = [f"Expert patch for {base} (fingerprint {fingerprint[:12]})"]
        for what, names in touched_names.items():
            lines.append(f"{what}, moved by {self._moved(names):.3g} of their norm")
        return "\n".join([*lines, f"{sum(tensor.numel() for tensor in self.after.values()):,} values"])

    def _moved(self, names: Iterable[str]) -> float:
        """Return ||after - before|| / ||before|| over the named tensors, 0 for none."""
        pairs = [(self.after[name].double(), self.before[name].double()) for name in names]
        change = sum(float((after - before).square().sum()) for after, before in pairs)
        size = sum(float(before.square().sum()) for _, before in pairs)
        return float((change / size) ** 0.5) if size else 0.0

    def apply(self, model: nn.Module) -> None:
        """Turn the base model into the repaired one; every value the patch does not name keeps its bits.

        Raises:
            ModelError: The model is not the base, the patch is applied already, or its rows are damaged.
        """
        self._exchange(model, self.after, start="sha256_before", end="sha256_after", refusal=_APPLIED)

    def revert(self, model: nn.Module) -> None:
        """Turn the repaired model back into the base, bit for bit.

        Raises:
            ModelError: The model is not what `apply` made, or the patch was never applied.
        """
        refusal = "This patch is not applied to the model, so there is nothing to revert."
        self._exchange(model, self.before, start="sha256_after", end="sha256_before", refusal=refusal)

    @contextmanager
    def put_on(self, model: nn.Module) -> Iterator[None]:
        """Let the base model compute with the patch for a while, in a training step for example.

        Nothing is hashed: the model must be the patch's base, and keep the patch until a backward is over.
        """
        parameters = dict(model.named_parameters())
        rows = self._rows()
        try:
            for name, tensor in self.after.items():
                write_rows(parameters[name], rows[name], tensor)
            yield
        finally:
            for name, tensor in self.before.items():
                write_rows(parameters[name], rows[name], tensor)

    def pieces(self, model: nn.Module) -> list[Piece]:
        """Return what the repaired model has where it differs from the base, for `swapped` and the audit.

        Raises:
            ModelError: The model is not the base.
        """
        self._require(model, start="sha256_before", end="sha256_after", refusal=_APPLIED)
        rows = self._rows()
        return [Piece(name, rows[name], values) for name, values in self.after.items()]

    def _rows(self) -> dict[str, list[int] | None]:
        return {entry["name"]: entry["rows"] for entry in self.manifest["tensors"]}

    def _exchange(
        self, model: nn.Module, rows: Mapping[str, Tensor], *, start: str, end: str, refusal: str
    ) -> None:
        """Check every touched tensor and every row, and only then write."""
        self._require(model, start=start, end=end, refusal=refusal)
        parameters, entries = dict(model.named_parameters()), self.manifest["tensors"]
        for entry in entries:
            name = entry["name"]
            if sha256_with(parameters[name], entry["rows"], rows[name]) != entry[end]:
                raise ModelError(
                    f"The patch is damaged: its rows of '{name}' are not those it was saved with."
                )
        for entry in entries:
            write_rows(parameters[entry["name"]], entry["rows"], rows[entry["name"]])

    def _require(self, model: nn.Module, *, start: str, end: str, refusal: str) -> None:
        parameters, entries = dict(model.named_parameters()), self.manifest["tensors"]
        wrong: list[str] = []
        num_at_end = 0
        for entry in entries:
            tensor = parameters.get(entry["name"])
            found = None if tensor is None else sha256_tensor(tensor)
            num_at_end += found == entry[end]
            if found != entry[start]:
                wrong.append(_difference(entry, tensor))
        if wrong and num_at_end == len(entries):
            raise ModelError(refusal)
        if wrong:
            raise ModelError(
                f"This patch was made for '{self.manifest['base_name']}' in another state than this model: "
                f"{wrong[0]} ({len(wrong)} of {len(entries)} tensors differ); load the model it was made for."
            )


def make_patch(
    moe: MoeMap,
    model: nn.Module,
    experts: Sequence[ExpertId],
    *,
    before: Mapping[str, Tensor],
    base_name: str,
    also: Sequence[str] = (),
) -> ExpertPatch:
    """Make a patch from a trained model and the snapshot taken before its training.

    Tensors that did not change are left out. Open expert slices must have been merged.

    Args:
        moe: The model's map.
        model: The trained model.
        experts: The experts given to `snapshot`.
        before: What `snapshot` returned.
        base_name: The name a reader loads the base by.
        also: The other parameters given to `snapshot`.

    Raises:
        ModelError: The snapshot is of other experts or another model.
    """
    after = snapshot(moe, model, experts, also=also)
    if {name: rows.shape for name, rows in after.items()} != {
        name: rows.shape for name, rows in before.items()
    }:
        raise ModelError(
            "The snapshot was taken of other experts or another model; take it before training, with the "
            "experts that are trained."
        )
    changed = {
        name: rows
        for name, rows in touched(moe, experts, also=also).items()
        if sha256_tensor(after[name]) != sha256_tensor(before[name])
    }
    tensors = _described(model, changed, before=before)
    manifest = {
        "format_version": FORMAT_VERSION,
        "base_name": base_name,
        "model_type": moe.model_type,
        "fingerprint": _fingerprint(model, tensors),
        "experts": [[expert.layer, expert.expert] for expert in sorted(experts)],
        "tensors": tensors,
        **({"attention": [name for name in also if name in changed]} if also else {}),
    }
    return ExpertPatch(
        experts=tuple(sorted(experts)),
        after={name: after[name] for name in changed},
        before={name: before[name] for name in changed},
        manifest=manifest,
    )


def _described(
    model: nn.Module, changed: Mapping[str, list[int] | None], *, before: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Return what the manifest says of every changed tensor."""
    parameters = dict(model.named_parameters())
    return [
        {
            "name": name,
            "rows": rows,
            "shape": list(parameters[name].shape),
            "dtype": dtype_name(parameters[name]),
            "sha256_before": sha256_with(parameters[name], rows, before[name]),
            "sha256_after": sha256_tensor(parameters[name]),
        }
        for name, rows in changed.items()
    ]


def _fingerprint(model: nn.Module, tensors: Sequence[Mapping[str, Any]]) -> str:
    """Hash the model's layout (names, shapes, dtypes) and the touched tensors before the change."""
    layout = [[name, list(tensor.shape), dtype_name(tensor)] for name, tensor in model.named_parameters()]
    before = [[entry["name"], entry["sha256_before"]] for entry in tensors]
    return hashlib.sha256(json.dumps([layout, before]).encode()).hexdigest()


def _difference(entry: Mapping[str, Any], tensor: Tensor | None) -> str:
    """Say how a tensor differs from what the manifest expects."""
    name, expected = entry["name"], f"{entry['dtype']} {entry['shape']}"
    if tensor is None:
        return f"it has no tensor '{name}'"
    found = f"{dtype_name(tensor)} {list(tensor.shape)}"
    if found != expected:
        return f"its '{name}' is {found} where {expected} is expected"
    return f"the values of '{name}' differ"
