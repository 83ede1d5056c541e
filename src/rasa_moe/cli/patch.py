"""Verbs on expert patches: the rows that repair changed, apart from the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import quiet_loading, say
from rasa_moe.errors import ConfigError, RunError

app = typer.Typer(
    help="Save, show, apply or revert an expert patch.", no_args_is_help=True, rich_markup_mode=None
)

PatchArgument = Annotated[
    Path, typer.Argument(metavar="PATCH", help="Folder of a patch, or directory of a run.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--to-checkpoint",
        metavar="DIR",
        help="Rewrite a copy of these files tensor by tensor; the model need not fit in memory.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="New directory, with --to-checkpoint.")
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


def _exchange(*, reverse: bool) -> Callable[..., None]:
    """Make the command that puts a patch in, or takes it out; both have the same arguments."""

    def command(
        patch: PatchArgument,
        model: Annotated[
            str | None, typer.Argument(metavar="[MODEL]", help="Model name or directory.", show_default=False)
        ] = None,
        destination: Annotated[
            Path | None,
            typer.Argument(metavar="[DEST]", help="New directory for the checkpoint.", show_default=False),
        ] = None,
        checkpoint: CheckpointOption = None,
        out: OutOption = None,
        revision: RevisionOption = None,
        trust_remote_code: TrustOption = False,
    ) -> None:
        """Take one of two ways: load the model, or rewrite the files of a checkpoint tensor by tensor."""
        folder = folder_of(patch)
        if checkpoint is not None and out is not None and model is None:
            rewrite_files(folder, checkpoint, out, trust_remote_code=trust_remote_code, reverse=reverse)
        elif model is not None and destination is not None and checkpoint is None and out is None:
            write_checkpoint(
                model,
                folder,
                destination,
                revision=revision,
                trust_remote_code=trust_remote_code,
                reverse=reverse,
            )
        else:
            raise ConfigError("Give either MODEL and DEST, or --to-checkpoint DIR and --out DIR.")

    return command


app.command(
    "apply",
    help="Write the checkpoint of MODEL with the patch in it; a model that is not the base is refused.",
)(_exchange(reverse=False))
app.command(
    "revert",
    help="Write the checkpoint of the patched MODEL with the patch taken out, bit for bit the base again.",
)(_exchange(reverse=True))


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
    from rasa_moe.export.checked import check_export
    from rasa_moe.export.stored import describe_types, exact, store_as, stored_dtypes
    from rasa_moe.moe import load_model
    from rasa_moe.moe.directories import export_checkpoint, finished_directory
    from rasa_moe.moe.patch import ExpertPatch

    quiet_loading()
    asked = _dtype_of_run(patch_folder, model_name)
    patch = ExpertPatch.load(patch_folder)
    # In the type the run worked in: the patch vouches for whole tensors, bit by bit.
    worked = min({entry["dtype"] for entry in patch.manifest["tensors"]} or {"auto"})
    model, tokenizer = load_model(
        model_name, dtype=worked, device="cpu", trust_remote_code=trust_remote_code, revision=revision
    )
    dtypes = stored_dtypes(model, model_name, revision=revision)
    if reverse:
        exact(model, patch, dtypes)
        patch.revert(model)
    else:
        patch.apply(model)
    if reverse or asked == "auto":
        store_as(model, dtypes)
    types = describe_types(model, dtypes, trained=worked if patch.after and not reverse else None)
    with finished_directory(destination) as unfinished:
        export_checkpoint(model, tokenizer, unfinished)
        checked = check_export(model, unfinished)
    say(f"Wrote the checkpoint to {destination} {types}; {checked}")


def _dtype_of_run(patch_folder: Path, model_name: str) -> str:
    """Return the type that the run of a patch was told to work in; "auto" where the patch left its run.

    Raises:
        RunError: The run's base has other files by now, on which its measurements do not hold.
    """
    from rasa_moe.inputs import source_hashes
    from rasa_moe.rundir import RunDirectory
    from rasa_moe.session import Session

    path = patch_folder.parent
    if not (path / "config.yaml").is_file():
        return "auto"
    directory = RunDirectory.open(path)
    mark = directory.marks().get("align")
    if mark is not None and model_name == directory.config.model:
        now = source_hashes(Session(directory), ("model",))["model"]
        if mark.inputs.get("model") not in {None, now}:
            raise RunError(
                f"The files of {model_name} have changed since they were repaired; do that again with: "
                f"rasa-moe run --out {path}"
            )
    return directory.config.dtype


def rewrite_files(
    patch_folder: Path, checkpoint: Path, destination: Path, *, trust_remote_code: bool, reverse: bool = False
) -> None:
    """Put a patch into a copy of a checkpoint's files, or take it out, without loading the model."""
    from rasa_moe.cli.bars import Bars
    from rasa_moe.moe.checkpoint_patch import apply_to_checkpoint
    from rasa_moe.moe.patch import ExpertPatch

    quiet_loading()
    with Bars() as bars:
        written = apply_to_checkpoint(
            ExpertPatch.load(patch_folder),
            checkpoint,
            destination,
            reverse=reverse,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    rounded = f"; {written.num_rounded:,} values were rounded to its type" if written.num_rounded else ""
    say(f"Wrote {destination}: {len(written.tensors)} tensors changed{rounded}")
