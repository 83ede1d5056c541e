"""Charts put things where the numbers say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rasa_moe.report import write_report
from rasa_moe.report.curves import MOST_POINTS, Line, line_chart, nice_ticks, shorten, shortened_position
from rasa_moe.report.heatmap import expert_heatmap, expert_table
from rasa_moe.report.load import load_experts
from rasa_moe.report.load_training import load_training
from rasa_moe.report.numbers import Estimate
from rasa_moe.report.selection import ranking_words, selection_words
from rasa_moe.report.strips import Lane, Scale, strip, style_of
from rasa_moe.report.swaps import audit_line
from rasa_moe.report.training import training_part
from report.fake_run import FakeRun, write_fake_run, write_lines, write_text
from report.reading import Page


def test_dots_and_intervals_lie_on_the_scale() -> None:
    lanes = [
        Lane("base", style_of("base", ()), Estimate(0.4, 0.25, 0.5, 8, 20)),
        Lane("x", style_of("x", ("x",)), None),
    ]
    drawn = strip(lanes, label="story")
    assert 'x1="25.00%" x2="50.00%"' in drawn
    assert '<svg x="40.00%"' in drawn
    assert "not measured" in drawn
    assert 'aria-label="story: Base 40% (25 to 50%; 8 of 20); x not measured"' in drawn


def test_values_beyond_the_scale_stop_at_its_ends() -> None:
    scale = Scale(-0.25, 1.0, (0.0, 1.0))
    assert [scale.at(value) for value in (-3.0, -0.25, 0.375, 1.0, 9.0)] == [
        "0.00%", "0.00%", "50.00%", "100.00%", "100.00%"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (0.0, (0.0, 1.0)),
        (1.0, (0.0, 0.5, 1.0)),
        (0.034, (0.0, 0.01, 0.02, 0.03, 0.04)),
        (2.9, (0.0, 1.0, 2.0, 3.0)),
        (1e-7, (0.0, 5e-8, 1e-7)),
    ],
)
def test_ticks(top: float, expected: tuple[float, ...]) -> None:
    assert nice_ticks(top) == pytest.approx(expected)


@pytest.mark.parametrize("top", [0.0007, 0.3, 1.0, 3.3, 9.99, 47.0, 1234.5])
def test_ticks_cover_the_values_with_few_lines(top: float) -> None:
    ticks = nice_ticks(top)
    assert ticks[0] == 0 and ticks[-1] >= top and 2 <= len(ticks) <= 6


def test_long_lines_are_averaged_and_gaps_kept() -> None:
    assert shorten([1.0, None, 3.0]) == (1.0, None, 3.0)
    long = [float(at) for at in range(10 * MOST_POINTS)]
    short = shorten(long)
    assert len(short) == MOST_POINTS and short[0] == pytest.approx(4.5)
    assert shortened_position(25, len(long)) == 2
    assert shorten([None] * (2 * MOST_POINTS)) == (None,) * MOST_POINTS


def test_lines_start_anew_after_a_gap() -> None:
    chart = line_chart([Line("loss", "c0", (1.0, None, 0.5, 0.0))], title="t", x_label="x", ends=("1", "4"))
    assert 'd="M0 0M66.667 50L100 100"' in chart
    assert 'aria-label="t. loss from 1 to 0"' in chart


def test_heatmap_draws_every_expert_and_outlines_the_selected(tmp_path: Path) -> None:
    experts = load_experts(write_fake_run(tmp_path, FakeRun(num_layers=3, num_experts=8)))
    drawn = str(expert_heatmap(experts)).split('class="heat"')[1]
    assert drawn.count("<title>L") == 24
    assert drawn.count('class="chosen"') == len(experts.selected) == 3
    strongest = max(experts.scores, key=lambda score: abs(score.aad))
    cell = re.search(rf"<rect([^>]*)><title>L{strongest.layer}\.E{strongest.expert},", drawn)
    assert cell is not None and 'fill-opacity="1"' in cell[1]
    assert f'class="{"pos" if strongest.aad >= 0 else "neg"}"' in cell[1]
    assert str(expert_table(experts)).count('scope="row"') == 3
    assert selection_words(experts).startswith("3 of 24 routed experts were selected for repair (12.5%)")


def _edit_selection(run: Path, **values: object) -> None:
    record = json.loads((run / "experts.json").read_text())
    write_text(run / "experts.json", json.dumps({**record, **values}))


def test_the_page_says_what_experts_were_ranked_by(tmp_path: Path) -> None:
    """One of two selected experts is active on refusals as well: AAD alone would take another."""
    run = write_fake_run(tmp_path, FakeRun(num_layers=1, num_experts=4))
    head = (run / "expert_scores.csv").read_text().splitlines()[0]
    rates = [(1.0, 1.0, 1), (0.6, 0.0, 1), (0.4, 0.2, 0), (0.1, 0.0, 0)]
    lines = [
        f"1,{at},{adv - anchor},-1,1,{adv},{anchor},{chosen},1,{adv - 0.5 * anchor}"
        for at, (adv, anchor, chosen) in enumerate(rates)
    ]
    write_text(run / "expert_scores.csv", "\n".join([head, *lines]) + "\n")
    _edit_selection(run, experts=[[1, 1], [1, 0]], anchor_weight=0.5)
    experts = load_experts(run)
    words = ranking_words(experts)
    assert "minus 0.5 \u00d7" in words
    assert "last one selected scores +0.500, the best one not selected +0.300" in words
    assert "AAD alone would have selected 1 of these 2" in words
    tied = replace(experts, scores=tuple(replace(one, score=0.5) for one in experts.scores))
    assert "scores +0.500, and so does the best one not selected" in ranking_words(tied)
    assert "L1.E1: score +0.600, AAD +0.600" in selection_words(experts)
    assert "L1.E2, not selected. Score +0.300; AAD +0.200" in str(expert_heatmap(experts))
    listed = str(expert_table(experts))
    assert "Score" in listed and listed.index("L1.E1") < listed.index("L1.E0")


def test_runs_that_ranked_by_aad_or_do_not_say_show_no_score(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, FakeRun(num_layers=2, num_experts=4))
    _edit_selection(run, anchor_weight=1)
    by_aad = load_experts(run)
    assert ranking_words(by_aad) == "The experts were ranked by AAD."
    assert "Score" not in str(expert_table(by_aad)) + str(expert_heatmap(by_aad))
    # As releases before this one wrote it: neither the weight nor the column of scores.
    _edit_selection(run, anchor_weight=None)
    lines = (run / "expert_scores.csv").read_text().splitlines()
    write_text(run / "expert_scores.csv", "\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    old = load_experts(run)
    assert (old.scores[0].score, ranking_words(old)) == (None, "")
    assert "Score" not in str(expert_table(old)) + str(expert_heatmap(old))


def test_a_heatmap_without_differences_or_selection_still_draws(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, FakeRun(num_layers=1, num_experts=2))
    head = (run / "expert_scores.csv").read_text().splitlines()[0]
    write_text(run / "expert_scores.csv", f"{head}\n1,0,0,0,0,0.5,0.5,0,0,0.25\n1,1,0,0,0,0.5,0.5,0,0,0.25\n")
    text = (run / "experts.json").read_text()
    write_text(run / "experts.json", re.sub(r'"experts": \[.*\]', '"experts": []', text, flags=re.DOTALL))
    experts = load_experts(run)
    assert expert_heatmap(experts).count("<title>L") == 2
    assert "none stands out" in selection_words(experts)


def test_a_stage_that_hardly_moved_is_pointed_out(tmp_path: Path) -> None:
    step = {"method": "rasa", "phase": "router", "round": 0}
    moved = {"event": "moved", "relative_change": {"routers": 2e-8}}
    broken = {"step": 1, "loss": float("nan"), "kl": 0.1}
    write_lines(
        tmp_path / "training.jsonl", [{**step, "step": 0, "kl": 0.2}, {**step, **broken}, {**step, **moved}]
    )
    drawn = training_part(load_training(tmp_path / "training.jsonl"))
    assert "routers hardly moved, so this phase did next to nothing" in drawn
    assert "1 of 2 steps have a loss that is not a finite number" in drawn
    assert "from 0.2 to 0.1" in drawn


def test_every_part_of_a_loss_has_a_line(tmp_path: Path) -> None:
    names = ("jailbreak", "anchor", "retain", "recovery", "drift")
    parts = {"loss": 5.0, **{f"loss_{name}": 1.0 for name in names}}
    steps = [
        {"method": "rasa", "phase": phase, "round": 0, "step": at, **values}
        for phase, values in (("repair", parts), ("router", {"loss": 0.3, "kl": 0.2, "kl_retain": 0.1}))
        for at in range(3)
    ]
    write_lines(tmp_path / "training.jsonl", steps)
    drawn = training_part(load_training(tmp_path / "training.jsonl"))
    for words in (
        "refusals half-way",
        "retained behaviour",
        "drift of scores",
        "KL of jailbreak",
        "KL of plain and harmless",
    ):
        assert words in drawn


def test_an_empty_log_is_no_error(tmp_path: Path) -> None:
    write_text(tmp_path / "training.jsonl", "\n")
    assert "holds no optimiser steps" in training_part(load_training(tmp_path / "training.jsonl"))


@pytest.mark.parametrize("verdict", ["repair", "shortcut", "mixed", "no verdict"])
def test_a_verdict_on_the_gain_is_none_on_safety(tmp_path: Path, verdict: str) -> None:
    run = write_fake_run(tmp_path, FakeRun(story="improved"))
    audit = json.loads((run / "audit.json").read_text())
    audit["verdicts"] = [{"model": "rasa", "verdict": verdict, "reason": "because"}]
    (run / "audit.json").write_text(json.dumps(audit))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "nor whether a model is safe" in page.text
    words = {
        "repair": "Repaired: the gain sits in the experts (repair)",
        "no verdict": "Repaired: no verdict",
    }
    assert words.get(verdict, f"({verdict})") in page.text


def test_the_audit_in_one_sentence(tmp_path: Path) -> None:
    from rasa_moe.report.load_training import load_audit

    run = write_fake_run(tmp_path)
    assert audit_line(load_audit(run / "audit.json")) == (
        "Audit: putting the base model\u2019s routers back undoes 4% (\u22122 to 10%) of the gain of "
        "the repair and 50% (36 to 63%) of that of full fine-tuning."
    )
    assert audit_line(None) is None
