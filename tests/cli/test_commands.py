"""The verbs: exit codes, one sentence for a user's mistake, how to resume, and a light start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from rasa_moe.cli import app, main
from rasa_moe.cli.bars import Bars, duration
from rasa_moe.cli.console import plain
from rasa_moe.errors import TrainingError

GOLDEN = Path(__file__).parent / "help"
VERBS = [
    [], ["run"], ["collect"], ["route"], ["detect"], ["align"], ["evaluate"], ["audit"],
    ["report"], ["reattack"], ["detect-check"], ["init"], ["doctor"], ["export"], ["push"], ["inspect-log"],
    ["patch"], ["patch", "save"], ["patch", "show"], ["patch", "apply"], ["patch", "revert"],
    ["testbed"], ["testbed", "build"], ["testbed", "chat"], ["testbed", "info"],
    ["reproduce"], ["attack"], ["bench"], ["benchmark"], ["judge"], ["pairs"], ["pairs", "check"],
    ["testbed", "measure"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb) or "main")
def test_the_help_of_every_verb_is_frozen(
    verb: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert _exit_code(*verb, "--help") == 0
    shown = capsys.readouterr().out
    golden = GOLDEN / f"{'-'.join(verb) or 'main'}.txt"
    if "UPDATE_GOLDEN" in os.environ:
        golden.write_text(shown)
    assert shown == golden.read_text(), "the help changed; if you meant it, run with UPDATE_GOLDEN=1"


def test_no_verb_is_forgotten() -> None:
    root = get_command(app)
    names = [[name] for name in root.commands]
    names += [
        [name, below] for name, verb in root.commands.items() for below in getattr(verb, "commands", {})
    ]
    assert sorted([[], *names]) == sorted(VERBS)


def test_help_and_a_wrong_setting_do_not_import_anything_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rasa_moe.cli import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['doctor', '--help'], ['run', '--set', 'x=1']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'plotly', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr


def test_python_m_and_the_version(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rasa_moe", "--version"],
        capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "rasa-moe 0.1.0\n")


def test_a_run_ends_with_a_table_and_the_report(method, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("run") == 0
    shown = capsys.readouterr()
    assert "Run directory: runs/olmoe-1" in shown.err and "align: done in" in shown.err
    table = [line.split() for line in shown.out.splitlines() if line.strip()]
    assert ["base", "90%", "99%"] in table and ["rasa", "5%", "-"] in table
    assert ["77", "-", "96%", "95", "-", "100%"] in table
    assert ["36/40", "2", "suites"] in table
    assert "2 outcomes could not be judged." in shown.out
    assert "Report: runs/olmoe-1/report.html" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    # What a file says is shown as it is: no colour, no markup.
    assert "a [bold]note[/bold] with [31mcolour" in shown.out and "\x1b" not in shown.out


def test_the_same_out_goes_on_and_another_configuration_is_refused(
    method, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code("run", "--out", "here", "--set", "seed=3") == 0
    assert _exit_code("run", "--out", "here") == 0
    assert "collect: kept" in capsys.readouterr().err
    assert method.ran == ["collect", "align", "evaluate"]
    assert _exit_code("run", "--out", "here", "--set", "seed=4") == 2
    assert "seed is 3 there and 4 here" in capsys.readouterr().err
    assert _exit_code("run", "here/config.yaml", "--out", "replay") == 0


def test_ctrl_c_says_how_to_resume(method, capsys: pytest.CaptureFixture[str]) -> None:
    method.fail["align"] = KeyboardInterrupt()
    assert _exit_code("run", "--out", "my run") == 130
    assert "Resume with: rasa-moe run --out 'my run'" in capsys.readouterr().err
    method.fail["align"] = KeyboardInterrupt()
    assert _exit_code("align", "my run") == 130
    assert "Resume with: rasa-moe align 'my run'" in capsys.readouterr().err
    assert _exit_code("run", "--out", "my run") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "none.yaml"], "Error: There is no configuration file none.yaml"),
        (["run", "--set", "align.roundz=2"], "did you mean align.rounds?"),
        (["collect", "nowhere"], "Error: nowhere is no run directory"),
        (["export", "nowhere", "dest"], "Error: nowhere is no run directory"),
        (["patch", "show", "nowhere"], "Error: There is no patch in nowhere"),
        (["no-such-verb"], "No such command 'no-such-verb'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(*arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and "Traceback" not in shown.err and not shown.out
    assert not Path("runs").exists()


def test_a_failed_training_is_one_sentence(method, capsys: pytest.CaptureFixture[str]) -> None:
    method.fail["align"] = TrainingError("The loss became NaN in step 3; lower align.expert_lr.")
    assert _exit_code("run") == 2
    assert capsys.readouterr().err.endswith("Error: The loss became NaN in step 3; lower align.expert_lr.\n")


def test_a_bug_keeps_its_traceback(method) -> None:
    method.fail["align"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_init_writes_what_run_reads_and_never_overwrites(method, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("init", "--set", "seed=5") == 0
    assert "seed: 5" in Path("rasa.yaml").read_text()
    assert _exit_code("init") == 2
    assert "rasa.yaml is already there" in capsys.readouterr().err
    assert _exit_code("run", "rasa.yaml") == 0
    capsys.readouterr()
    assert _exit_code("init", "-") == 0
    assert "# Learning rate of the routers" in capsys.readouterr().out


def test_text_from_outside_cannot_format_or_hide_anything() -> None:
    assert plain("a\x1b[31mb\x07\u202ec[red]d[/red]\ne").plain == "a[31mbc[red]d[/red]\ne"


def test_progress_in_a_log_is_quiet_and_says_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("rasa_moe.cli.bars.time.monotonic", lambda: now)
    with Bars() as bars:
        for done, now in enumerate((0.0, 10.0, 20.0, 21.0)):  # noqa: B007 - the clock above reads it
            bars("generate [base]", done, 40)
    assert capsys.readouterr().err == "  generate [base] 2/40, 6 min 20 s left\n"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.21, 245, 7620)] == ["3.2 s", "4 min 05 s", "2 h 07 min"]
