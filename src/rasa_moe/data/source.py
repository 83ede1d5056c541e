"""Where a run's prompts come from, and which attack families may be trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rasa_moe.data.columns import parse_columns
from rasa_moe.data.joining import join, repeated_ids
from rasa_moe.data.jsonl import bad_rows, listing
from rasa_moe.data.public import PUBLIC_SETS
from rasa_moe.data.rows import KINDS, PLAIN_FAMILY, Kind, PromptRow, Split, read_rows, require_no_leakage
from rasa_moe.data.tables import read_table
from rasa_moe.data.understand import Understood, understand
from rasa_moe.errors import ConfigError, DataError

TESTBED = "testbed"
JOINT = " + "
AS = " as "
TRAIN: Split = "train"
TEST: Split = "test"
_OWN_FIELDS = frozenset(PromptRow.__dataclass_fields__)


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


def load_source(
    name: str,
    *,
    families: Sequence[str] = (),
    columns: Sequence[str] = (),
    kind: str = "harmful",
    limit: int | None = None,
) -> Source:
    """Load prompts and decide which attack families are trained on.

    Args:
        name: "testbed"; the path of a table; a data set of the hub (`hf:owner/name@revision#split`); a public
            set by name; or several of them, joined by " + ". Each may end in " as KIND".
        families: Families to train on. Empty: the testbed's own train families, or every family of the file.
        columns: Which column holds what, such as "goal=Behavior"; the others are found by their usual names.
        kind: What the requests of a table are that does not say so itself.
        limit: Most rows taken from one source, the first ones, besides plain requests that are added for
            them; None for all.

    Raises:
        DataError: Bad file, a goal in two splits, or an unknown family.
        ConfigError: A column setting or the kind is wrong.
    """
    if name == TESTBED:
        from rasa_moe.testbed.families import family_splits
        from rasa_moe.testbed.rows import testbed_rows

        rows: Sequence[PromptRow] = testbed_rows()
        splits = dict(family_splits())
    else:
        rows = _rows_of(name, columns=columns, kind=kind, limit=limit)
        require_no_leakage(rows)
        splits = {row.family: TRAIN for row in rows if is_attack(row)}
    return with_families(Source(name=name, rows=tuple(rows), family_splits=splits), families)


def with_families(source: Source, families: Sequence[str]) -> Source:
    """Return the source with only the given families to train on; none given: as it is.

    Raises:
        DataError: There is no such family.
    """
    splits = source.family_splits
    unknown = sorted(set(families) - set(splits))
    if unknown:
        known = ", ".join(sorted(splits)) or "none at all"
        raise DataError(f"{source.name} has no attack family {', '.join(unknown)}; it has {known}")
    if not families:
        return source
    chosen = {
        family: TRAIN if family in families else TEST if split == TRAIN else split
        for family, split in splits.items()
    }
    return Source(name=source.name, rows=source.rows, family_splits=chosen)


def _rows_of(name: str, *, columns: Sequence[str], kind: str, limit: int | None) -> list[PromptRow]:
    parts = split_joint(name)
    rows = join([read_part(part, columns=columns, kind=kind, limit=limit) for part in parts])
    repeated = repeated_ids(rows)
    if repeated:
        raise DataError(f"{name}: {repeated[0]}")
    return rows


def read_part(
    name: str, *, columns: Sequence[str] = (), kind: str = "harmful", limit: int | None = None
) -> Understood:
    """Read one source without a bad row.

    Raises:
        DataError: The source is missing or broken; bad lines are listed.
    """
    understood = understand_source(name, columns=columns, kind=kind, limit=limit)
    if understood.problems:
        headline = f"{name} has {bad_rows(understood.problems)} (see: rasa-moe pairs check)"
        raise DataError(listing(headline, understood.problems))
    if not understood.rows:
        raise DataError(f"{name} has no rows; give a file with at least one")
    return understood


def understand_source(
    name: str, *, columns: Sequence[str] = (), kind: str = "harmful", limit: int | None = None
) -> Understood:
    """Read one source: rows that we wrote, a table that was not written for us, or a public set by its name.

    Raises:
        DataError: The source cannot be read at all.
        ConfigError: A column setting or the kind is wrong.
    """
    asked = name
    name, kind = split_kind(asked, default=kind)
    if kind not in KINDS:
        raise ConfigError(f"data.kind is {kind!r}; choose one of {', '.join(KINDS)}")
    public = PUBLIC_SETS.get(name.lower())
    says_kinds = is_own(name) and not columns if public is None else bool(public.kinds)
    if name != asked and says_kinds:
        raise ConfigError(f"the rows of {name} say their kinds themselves; leave '{AS.strip()} {kind}' away")
    if is_own(name) and not columns:
        rows = tuple(read_rows(name)[:limit])
        return Understood(rows, {}, (), fixed=frozenset(row.id for row in rows), is_own=True)
    given = parse_columns(columns)
    if public is None:
        return understand(read_table(name), columns=given, kind=cast(Kind, kind), limit=limit)
    return understand(
        read_table(public.source),
        columns={**public.columns, **given},
        kind=public.kind if name == asked else cast(Kind, kind),
        kinds=public.kinds,
        limit=limit,
    )


def split_joint(name: str) -> list[str]:
    """Take "a.csv + b.csv" apart.

    Raises:
        DataError: A source is named twice.
    """
    parts = [part.strip() for part in name.split(JOINT)]
    repeated = [part for part, count in Counter(parts).items() if count > 1]
    if repeated:
        raise DataError(f"the source {repeated[0]} is named twice; name it once")
    return parts


def split_kind(name: str, *, default: str) -> tuple[str, str]:
    """Take "questions.csv as harmless" apart; a name that does not end so keeps the default kind."""
    path, found, kind = name.rpartition(AS)
    return (path.strip(), kind.strip()) if found and kind.strip() in KINDS else (name, default)


def is_own(name: str) -> bool:
    """Whether a file is JSONL whose every row holds all that `write_rows` writes.

    Rows that merely have an id, a kind and a prompt are anyone's: plain requests and splits are not settled.
    """
    path = Path(name)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return False
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, RecursionError):
        return False  # the reader of tables says what is wrong
    return bool(rows) and all(isinstance(row, dict) and set(row) >= _OWN_FIELDS for row in rows)


def is_attack(row: PromptRow) -> bool:
    """Whether the row asks for harm inside an attack."""
    return row.kind == "harmful" and row.family != PLAIN_FAMILY
