"""Workers of a killed reproduction end, too."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
from functools import partial
from rasa_moe.reproduce.pool import Pool
def main():
    task = "import os, time; open({folder!r} + f'/{{os.getpid()}}', 'w').close(); time.sleep(120)"
    with Pool(2) as pool:
        pool.do_all([partial(exec, task)] * 2, label="")
if __name__ == "__main__":
    main()
"""


def _wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "workers"
    folder.mkdir()
    script.write_text(SCRIPT.format(folder=str(folder)))
    with subprocess.Popen([sys.executable, str(script)]) as parent:
        assert _wait_for(lambda: len(list(folder.iterdir())) == 2, seconds=90)
        workers = [int(file.name) for file in folder.iterdir()]
        assert all(map(_is_alive, workers))
        parent.kill()
        parent.wait()
    assert _wait_for(lambda: not any(map(_is_alive, workers)), seconds=10)
