"""Workers of a killed reproduction end, too; while they live they keep freed memory."""

from __future__ import annotations

import os
import platform
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


FAULTS = """
import resource, sys
import torch
from rasa_moe.reproduce import pool
if sys.argv[1] == "keep":
    pool._keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        together = [torch.ones(1 << 20) for _ in range(8)]
        del together
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_kept() -> None:
    def count(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        # Whether freed memory is given back depends on what else lies there, unless large pieces lie alone.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(result.stdout)

    assert count("keep") * 10 < count("leave")
