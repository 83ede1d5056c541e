"""Put the page together: one file, no script, no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from rasa_moe.beside import still_holds
from rasa_moe.report.agreement import agreement_part
from rasa_moe.report.benchmarks import benchmarks_part
from rasa_moe.report.closing import limits_part, reproduce_part
from rasa_moe.report.detection import detection_part
from rasa_moe.report.examples import examples_part, silence_caution
from rasa_moe.report.heatmap import expert_heatmap, expert_table
from rasa_moe.report.markup import Html, el, join
from rasa_moe.report.numbers import whole
from rasa_moe.report.reading import read_json, remedy
from rasa_moe.report.reattack import reattack_part
from rasa_moe.report.records import Run
from rasa_moe.report.results import headline_table, suite_charts, verdict_block
from rasa_moe.report.selection import ranking_words, selection_words
from rasa_moe.report.swaps import audit_line, audit_part
from rasa_moe.report.training import training_part

Section = tuple[str, str, Html]


def render_page(run: Run) -> str:
    """Return the whole page as HTML text; the same files always give the same text.

    Args:
        run: a loaded run directory.

    Returns:
        HTML that a browser shows without network and without scripts.
    """
    sections = _sections(run)
    title = f"RASA-MoE report: {_model_name(run)}"
    body = join(
        (
            el("a", "Skip to the results", href="#verdict", class_="skip"),
            theme_choice(),
            el("header", *_title(run), _contents(sections)),
            el(
                "main",
                verdict_block(run.evaluation, audit_line=audit_line(run.audit), silence=silence_caution(run)),
                *(_section(*section) for section in sections),
            ),
            el(
                "footer",
                el(
                    "p",
                    "Made by rasa-moe report from the files of the run; nothing was computed by a model to "
                    "make this page.",
                ),
            ),
        )
    )
    return f"<!DOCTYPE html>\n{el('html', head(title), el('body', body), lang='en')}\n"


def _sections(run: Run) -> list[Section]:
    found: list[tuple[str, str, Html | None]] = [
        ("headline", "Results in brief", headline_table(run.evaluation)),
        ("suites", "Every suite", suite_charts(run.evaluation)),
        ("experts", "Which experts", _experts(run)),
        ("training", "Training", training_part(run.training)),
        ("audit", "Audit: repaired or rerouted?", None if run.audit is None else audit_part(run.audit)),
        ("checks", "Does the selection mean safety?", _beside(run, "detection_checks.json", detection_part)),
        ("reattack", "Attacked again", _beside(run, "reattack.json", reattack_part)),
        ("benchmarks", "Benchmarks", _beside(run, "benchmarks.json", benchmarks_part)),
        ("judges", "Do judges agree?", _beside(run, "judges.json", agreement_part)),
        ("examples", "Answers before and after", examples_part(run)),
        ("limits", "What these numbers do not say", limits_part(run)),
        ("reproduce", "How to reproduce", reproduce_part(run)),
    ]
    return [(anchor, heading, content) for anchor, heading, content in found if content is not None]


def _beside(run: Run, name: str, part: Callable[[Path], Html | None]) -> Html | None:
    """Show a result that no stage vouches for, or say that it is of an earlier state of the run."""
    path = run.directory / name
    if not path.exists() or still_holds(run.directory, name, read_json(path).values):
        return part(run.directory)
    sentence = f"Left out: {name} was measured on an earlier state of this run; {remedy(path)}"
    return el("p", sentence, class_="note")


def _experts(run: Run) -> Html:
    about = (
        "AAD (adversarial activation discrepancy) is how much more often an expert is active on successful "
        "jailbreaks "
        "than on the same goals asked plainly and "
        f"refused{f' (span: {run.experts.span})' if run.experts.span else ''}."
    )
    return join(
        (
            el("p", about, class_="note"),
            el("p", selection_words(run.experts)),
            *(el("p", words) for words in (ranking_words(run.experts), run.attention_words) if words),
            expert_heatmap(run.experts),
            expert_table(run.experts),
        )
    )


def _section(anchor: str, heading: str, content: Html) -> Html:
    return el("section", el("h2", heading, id=anchor), content, aria_labelledby=anchor)


def _contents(sections: list[Section]) -> Html:
    links = [el("li", el("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    return el("nav", el("ol", *links), aria_label="Contents")


def _title(run: Run) -> list[Html]:
    facts = [
        ("Data", run.setting("data", "source") or "unknown"),
        ("Trained on", _pairs_words(run)),
        (
            "Routed experts",
            f"{len(run.experts.layers)} layers \u00d7 {run.experts.num_experts}, top {run.experts.top_k}",
        ),
        ("Seed", run.setting("seed") or "not set"),
    ]
    pairs = [el("div", el("dt", name), el("dd", value)) for name, value in facts if value]
    return [
        el("p", "RASA-MoE report", class_="over"),
        el("h1", f"Safety repair of {_model_name(run)}"),
        el("dl", *pairs, class_="facts"),
    ]


def _model_name(run: Run) -> str:
    return run.setting("model") or run.experts.model


def _pairs_words(run: Run) -> str:
    pairs = run.pairs_by_family
    families = run.evaluation.trained_families or tuple(pairs)
    if not pairs:
        return ", ".join(families)
    return f"{whole(sum(pairs.values()))} pairs of {len(pairs)} attack families ({', '.join(families)})"


def theme_choice() -> Html:
    """Let the reader choose light or dark; radio buttons and `:has()` need no script."""
    choices = [
        el(
            "label",
            el("input", type="radio", name="theme", id=f"theme-{name}", checked=name == "auto"),
            el("span", name.capitalize()),
        )
        for name in ("auto", "light", "dark")
    ]
    return el("fieldset", el("legend", "Theme"), *choices, class_="theme")


def head(title: str, *, more_style: str = "") -> Html:
    """Return the head of a page: the style sheet, and a policy that allows nothing else."""
    sheet = resources.files("rasa_moe.report").joinpath("style.css").read_text(encoding="utf-8")
    style = sheet + more_style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # The hash allows this one style sheet only: text that slipped through could load or style nothing.
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        # Not by `el`, which would write each quote of the policy as an entity.
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        Html(f"<style>{style}</style>"),
    )
