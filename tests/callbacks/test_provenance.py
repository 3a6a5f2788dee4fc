"""Where a number came from is found out without a trace."""

import os
import subprocess
from pathlib import Path

import pytest

from callbacks import provenance


def test_the_repository_is_asked_without_being_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock `git status` takes the index's lock to write down what it saw; killed, it leaves the lock."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "file.py"
    file.write_text("x = 1\n")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "First"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    index = (tmp_path / ".git" / "index").read_bytes()
    os.utime(file, (1, 1))  # the same content, but git has to look
    monkeypatch.setattr(provenance, "__file__", str(file))
    commit = provenance._commit()
    assert commit is not None
    assert not commit.endswith("+")
    assert (tmp_path / ".git" / "index").read_bytes() == index
    file.write_text("x = 2\n")
    assert provenance._commit() == f"{commit}+"
