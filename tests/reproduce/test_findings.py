"""What the page says first agrees with the tables, also where RASA loses."""

from __future__ import annotations

from rasa_moe.config import Config
from rasa_moe.reproduce.findings import Finding, findings
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.protocol import QUICK
from rasa_moe.reproduce.tables import BETTER, UNCLEAR, WORSE, Row

EMPTY: dict[str, list[Row]] = {"means": [], "paired": [], "e_passes": [], "e_passes_paired": []}

METHODS = ("rasa", "full", "lora", "experts_only", "steering")
ATTACKS, WRAPPED = "attack_held_out", "wrapped_benign"


def found(
    attacks: dict[str, tuple[float, str]], wrapped: dict[str, tuple[float, str]], *, rasa: tuple[float, float]
) -> Finding:
    """Return the findings of one model, given (rate, verdict) of each other method."""
    measures = {ATTACKS: (rasa[0], 1.0, attacks), WRAPPED: (rasa[1], 0.0, wrapped)}
    means: list[Row] = []
    paired: list[Row] = []
    for measure, (ours, base, others) in measures.items():
        rates = {"base": base, "rasa": ours, **{name: rate for name, (rate, _) in others.items()}}
        means += [
            {"model": "m", "method": name, "measure": measure, "rate": rate, "ci_low": 0.0, "ci_high": 1.0}
            for name, rate in rates.items()
        ]
        paired += [
            {"model": "m", "measure": measure, "second": name, "verdict": verdict}
            for name, (_, verdict) in others.items()
        ]
    (one,) = findings(Plan(QUICK, ("m",), METHODS, Config()), {**EMPTY, "means": means, "paired": paired})
    return one


def test_wins_losses_and_their_price_are_named() -> None:
    one = found(
        {
            "full": (0.995, BETTER),
            "lora": (0.7, BETTER),
            "experts_only": (0.2, WORSE),
            "steering": (0.45, UNCLEAR),
        },
        {
            "full": (0.0, WORSE),
            "lora": (0.03, UNCLEAR),
            "experts_only": (0.3, BETTER),
            "steering": (0.01, WORSE),
        },
        rasa=(0.5, 0.04),
    )
    assert "50% of attacks from families it was not trained on" in one.lead and "base model 100%" in one.lead
    assert "RASA is not the best here: 1 of 4 other methods" in one.lead
    points = dict(one.points)
    assert "2 of 4 other methods; the best of those is LoRA with 70%" in points["Wins"]
    assert "1 of them hardly moved the base model's rate" in points["Wins"]
    assert "All experts: 20%" in points["Loses"]
    assert (
        "They refuse clearly more wrapped harmless requests for it (All experts: 30%; RASA: 4%)"
        in points["Loses"]
    )
    assert "Router steering: 45%" in points["No clear difference"]
    price = points["Wrapped harmless requests"]
    assert (
        "4% refused (base model 0%); clearly fewer than with 1 of 4, clearly more than with 2 of 4" in price
    )
    assert "1 of the 2 that refuse fewer let clearly more attacks through" in price
    assert "Ability" not in points  # nothing was measured, so nothing is said


def test_a_loss_without_an_excuse_and_no_difference_at_all() -> None:
    attacks = {"full": (0.2, WORSE), "lora": (0.1, WORSE)}
    same = {"full": (0.04, UNCLEAR), "lora": (0.04, UNCLEAR)}
    points = dict(found(attacks, same, rasa=(0.5, 0.04)).points)
    assert "Wins" not in points and "LoRA: 10%; Full fine-tuning: 20%" in points["Loses"]
    assert "They do not refuse clearly more" in points["Loses"]
    assert "no clear difference from any of 2 other methods" in points["Wrapped harmless requests"]
    level = found(same, same, rasa=(0.04, 0.04))
    assert "None of 2 other methods is clearly better or worse" in level.lead


def test_a_model_without_comparisons_has_no_findings() -> None:
    assert findings(Plan(QUICK, ("m",), METHODS, Config()), EMPTY) == []
