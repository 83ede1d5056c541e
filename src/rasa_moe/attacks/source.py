"""The prompts of a run: its source, and the jailbreaks that the run makes itself around plain goals."""

from __future__ import annotations

from rasa_moe.attacks.make import make_rows
from rasa_moe.attacks.registry import get_attacks
from rasa_moe.config.schema import Config
from rasa_moe.data.source import TRAIN, Source, is_attack, load_source, with_families
from rasa_moe.errors import ConfigError


def run_source(config: Config) -> Source:
    """Load the prompts that a configuration names and wrap them in `data.attacks`.

    Raises:
        ConfigError: An attack is unknown, or needs a model: those are made beforehand, where their cost is
            shown.
        DataError: The prompts cannot be used, or a family is unknown.
    """
    data, families = config.data, config.collect.families
    attacks = get_attacks(data.attacks) if data.attacks else []
    source = load_source(
        data.source,
        families=() if attacks else families,
        columns=data.columns,
        kind=data.kind,
        limit=data.limit,
    )
    if not attacks:
        return source
    paid = [attack.name for attack in attacks if attack.cost("").calls]
    if paid:
        raise ConfigError(
            f"data.attacks names {paid[0]}, which a model writes; make it first with rasa-moe attack, which "
            "shows the cost, and give the file as data.source"
        )
    made = make_rows(source.rows, attacks, seed=config.seed)
    if made.failures:
        count, first = len(made.failures), made.failures[0]
        raise ConfigError(f"data.attacks: {count} prompts cannot be made; the first: {first}")
    rows = (*source.rows, *made.rows)
    splits = {
        **source.family_splits,
        **{row.family: TRAIN for row in made.rows if is_attack(row)},
    }
    return with_families(Source(name=source.name, rows=rows, family_splits=splits), families)
