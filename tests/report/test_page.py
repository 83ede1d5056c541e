"""The page as a whole: one file, no network, no script, readable without colours, the same every time."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rasa_moe.beside import write_beside
from rasa_moe.report import write_report
from report.fake_run import FakeRun, write_fake_run
from report.reading import Page

HEADINGS = [
    "Verdict",
    "Results in brief",
    "Every suite",
    "Which experts",
    "Training",
    "Audit: repaired or rerouted?",
    "Answers before and after",
    "What these numbers do not say",
    "How to reproduce",
]


def page_of(directory: Path, fake: FakeRun | None = None) -> Page:
    return Page(write_report(write_fake_run(directory, fake)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(tmp_path_factory.mktemp("run"))


def headings(page: Page) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", page.source)


def test_the_parts_come_in_the_order_of_interest(page: Page) -> None:
    assert headings(page) == HEADINGS
    assert page.all("h1") and "testbed/olmoe" in page.text


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"} & {
        tag for tag, _ in page.elements
    }
    assert all(value.startswith("#") for value in page.values("href"))
    assert not page.values("src")
    assert "//" not in page.source.replace("</", "")
    assert "url(" not in page.source and "@import" not in page.source


def test_no_element_carries_a_handler_or_a_style(page: Page) -> None:
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("style", "srcdoc", "action")]


def test_the_policy_allows_exactly_this_style_sheet(page: Page) -> None:
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "script-src" not in policy


def test_light_and_dark_are_the_same_for_the_system_and_for_the_reader(page: Page) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    rules = re.findall(r"\{([^{}]*--paper[^{}]*--c5[^{}]*)\}", style)
    light, system_dark, chosen_light, chosen_dark = (" ".join(rule.split()) for rule in rules)
    assert light == chosen_light
    assert system_dark == chosen_dark
    assert re.findall(r"--[a-z0-9]+", light) == re.findall(r"--[a-z0-9]+", system_dark)


def test_links_lead_somewhere_and_names_are_unique(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_every_chart_says_what_it_shows(page: Page) -> None:
    charts = page.all("svg")
    assert len(charts) > 50
    nested = [chart for chart in charts if chart.get("class") == "at"]
    for chart in charts:
        if chart not in nested:
            assert chart.get("aria-hidden") == "true" or (chart.get("role") and chart.get("aria-label")), (
                chart
            )


def test_wide_parts_scroll_in_boxes_that_the_keyboard_reaches(page: Page) -> None:
    boxes = page.all("div", class_="scroll")
    assert len(boxes) >= len(page.all("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(moved).read_bytes() == first
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_parts_that_were_not_made_are_left_out(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, FakeRun(models=("base", "rasa")))
    (run / "audit.json").unlink()
    (run / "pairs.jsonl").unlink()
    shutil.rmtree(run / "generations")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert headings(page) == [
        heading for heading in HEADINGS if "udit" not in heading and "Answers" not in heading
    ]
    assert "ull fine-tuning" not in page.text


def test_the_limits_know_of_a_second_attack(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    assert "adapts to it was not measured here" in Page(write_report(run).read_text(encoding="utf-8")).text
    (run / "reattack.json").write_text('{"models": ["base", "rasa"], "worst": [], "attacks": []}')
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "not measured here" not in page.text and "as far as \u201cAttacked again\u201d goes" in page.text


def test_a_base_model_alone_still_gives_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, FakeRun(models=("base",)))
    assert "Nothing to compare" in page.text
    assert "Change, repaired" not in page.text


def test_many_rivals_keep_their_names_and_differ_in_shape_or_colour(tmp_path: Path) -> None:
    page = page_of(tmp_path, FakeRun(models=("base", "rasa", "full", "lora", "steering")))
    assert "lora" in page.text and "steering" in page.text
    (legend,) = re.findall(
        r'<ul class="legend">.*?</ul>', page.source.split("Every suite</h2>")[1], re.DOTALL
    )[:1]
    looks = re.findall(r'<path d="([^"]+)" class="([^"]+)">', legend)
    assert len(looks) == len(set(looks)) == 5


def test_new_openings_are_marked_on_held_out_attacks_only(page: Page) -> None:
    assert page.source.count('class="tag">new opening: ') == 4
    assert "new opening: decoded" in page.text and "new opening: sure" not in page.text


def test_the_files_behind_the_page_can_be_checked(page: Page, tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    digest = hashlib.sha256((run / "evaluation.json").read_bytes()).hexdigest()
    assert digest in page.text
    assert "rasa-moe run config.yaml" in page.text
    assert "fixed_routing: frozen" in page.text and "2.13.0+cpu" in page.text


def test_attacks_that_end_in_no_refusal_are_no_quiet_success(tmp_path: Path, page: Page) -> None:
    assert "neither harmful nor a refusal" not in page.text
    run = write_fake_run(tmp_path)
    path = run / "generations" / "rasa.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[::2], *(line.replace('"full"', '"none"') for line in lines[1::2])]))
    changed = Page(write_report(run).read_text(encoding="utf-8"))
    said = re.search(
        r"Of the (\d+) attacks that no longer work, (\d+) are refused; the other (\d+)", changed.text
    )
    assert said is not None
    stopped, refused, odd = map(int, said.groups())
    assert stopped == refused + odd and odd == pytest.approx(stopped / 2, rel=0.2)
    assert "Answered before, now neither harmful nor a refusal" in changed.text


def test_neither_torch_nor_a_plotting_library_is_imported(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    script = (
        "import sys; from pathlib import Path; from rasa_moe.report import write_report;"
        f"write_report(Path({str(run)!r}));"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'plotly', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=_env()
    )
    assert done.returncode == 0, done.stderr


def _env() -> dict[str, str]:
    import os

    import rasa_moe

    return {**os.environ, "PYTHONPATH": str(Path(rasa_moe.__file__).parents[1])}


def test_results_of_an_earlier_repair_are_left_out(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run")
    content = {"judges": ["a", "b"], "answers": 1, "agreement": []}
    write_beside(run, "judges.json", content)
    assert "scored again by a, b" in write_report(run).read_text()
    evaluation = run / "evaluation.json"
    evaluation.write_text(evaluation.read_text() + "\n")
    page = write_report(run).read_text()
    assert "scored again by" not in page
    assert f"judges.json was measured on an earlier state of this run; run: rasa-moe judge {run}" in page
