"""Where a run's prompts come from, and which attack families may be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rasa_moe.data.rows import PLAIN_FAMILY, PromptRow, Split, read_rows, require_no_leakage
from rasa_moe.errors import DataError

TESTBED = "testbed"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Hold the prompts of a run.

    Attributes:
        name: "testbed" or the path of the file.
        rows: All prompts; a goal is in one split only.
        family_splits: Attack family -> the split it may be used in. Families of "train" give the pairs; those
            of "validation" are for tuning only; those of "test" are never trained nor tuned on.
    """

    name: str
    rows: tuple[PromptRow, ...]
    family_splits: Mapping[str, Split]

    @property
    def is_synthetic(self) -> bool:
        """Whether no prompt or answer can be harmful in the real world."""
        return self.name == TESTBED

    def families(self, *splits: Split) -> list[str]:
        """Return the attack families of the given splits, sorted."""
        return sorted(family for family, split in self.family_splits.items() if split in splits)


def load_source(name: str, *, families: Sequence[str] = ()) -> Source:
    """Load prompts and decide which attack families are trained on.

    Args:
        name: "testbed", or the path of a JSONL file of prompts.
        families: Families to train on. Empty: the testbed's own train families, or every family of the file.

    Raises:
        DataError: Bad file, a goal in two splits, or an unknown family.
    """
    if name == TESTBED:
        from rasa_moe.testbed.families import family_splits
        from rasa_moe.testbed.rows import testbed_rows

        rows: Sequence[PromptRow] = testbed_rows()
        splits: dict[str, Split] = dict(family_splits())
    else:
        rows = read_rows(name)
        require_no_leakage(rows)
        splits = {row.family: "train" for row in rows if is_attack(row)}
    unknown = sorted(set(families) - set(splits))
    if unknown:
        raise DataError(
            f"{name} has no attack family {', '.join(unknown)}; "
            f"it has {', '.join(sorted(splits)) or 'none at all'}."
        )
    if families:
        splits = {
            family: "train" if family in families else "test" if split == "train" else split
            for family, split in splits.items()
        }
    return Source(name=name, rows=tuple(rows), family_splits=splits)


def is_attack(row: PromptRow) -> bool:
    """Whether the row asks for harm inside an attack."""
    return row.kind == "harmful" and row.family != PLAIN_FAMILY
