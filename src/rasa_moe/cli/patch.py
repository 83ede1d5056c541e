"""Verbs on expert patches: the rows that repair changed, apart from the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import quiet_loading, say
from rasa_moe.errors import RunError

app = typer.Typer(
    help="Save, show, apply or revert an expert patch.", no_args_is_help=True, rich_markup_mode=None
)

PatchArgument = Annotated[
    Path, typer.Argument(metavar="PATCH", help="Folder of a patch, or directory of a run.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or directory.")]
DestinationArgument = Annotated[
    Path, typer.Argument(metavar="DEST", help="New directory for the checkpoint.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


@app.command()
def save(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New folder for the patch.")],
) -> None:
    """Copy the patch of a run to a folder of its own, to keep or to send on."""
    from rasa_moe.moe.patch import ExpertPatch

    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise RunError(f"{destination} is already there and not empty; choose a new folder.")
    ExpertPatch.load(folder_of(run_dir)).save(destination)
    say(f"Saved the patch to {destination}")


@app.command()
def show(patch: PatchArgument) -> None:
    """Say which experts a patch changes, in which model, and by how much."""
    from rasa_moe.moe.patch import ExpertPatch

    say(ExpertPatch.load(folder_of(patch)).describe())


@app.command()
def apply(
    patch: PatchArgument,
    model: ModelArgument,
    destination: DestinationArgument,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write the checkpoint of MODEL with the patch in it; a model that is not the base is refused."""
    write_checkpoint(
        model,
        folder_of(patch),
        destination,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


@app.command()
def revert(
    patch: PatchArgument,
    model: ModelArgument,
    destination: DestinationArgument,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write the checkpoint of the patched MODEL with the patch taken out, bit for bit the base again."""
    write_checkpoint(
        model,
        folder_of(patch),
        destination,
        revision=revision,
        trust_remote_code=trust_remote_code,
        reverse=True,
    )


def folder_of(path: Path) -> Path:
    """Return the patch folder that a path stands for: its own, or that of a run directory.

    Raises:
        RunError: There is no patch.
    """
    folder = path / "patch" if (path / "config.yaml").is_file() else path
    if not folder.is_dir():
        raise RunError(f"There is no patch in {path}; a run writes one: rasa-moe align RUN_DIR")
    return folder


def write_checkpoint(
    model_name: str,
    patch_folder: Path,
    destination: Path,
    *,
    revision: str | None,
    trust_remote_code: bool,
    reverse: bool = False,
) -> None:
    """Load a model, put a patch in or take it out, and write an ordinary checkpoint."""
    from rasa_moe.moe import load_model
    from rasa_moe.moe.patch import ExpertPatch, export_checkpoint

    quiet_loading()
    patch = ExpertPatch.load(patch_folder)
    # In the type the run worked in: the patch vouches for whole tensors, bit by bit.
    dtypes = {entry["dtype"] for entry in patch.manifest["tensors"]} or {"auto"}
    model, tokenizer = load_model(
        model_name, dtype=min(dtypes), device="cpu", trust_remote_code=trust_remote_code, revision=revision
    )
    if reverse:
        patch.revert(model)
    else:
        patch.apply(model)
    export_checkpoint(model, tokenizer, destination)
    say(f"Wrote the checkpoint to {destination}")
