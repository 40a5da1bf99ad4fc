"""A record says where its numbers come from, and survives the file."""

import json
import subprocess

import pytest

from bench import record


def test_record_survives_the_file(tmp_path):
    made = record.new_record("layer", "cpu", {"T": 28}, [{"impl": "ours", "time_ms": [1.5, 0.1]}])
    path = tmp_path / "new folder" / "layer.json"
    record.write(path, made)
    assert json.loads(path.read_text()) == made


def test_record_names_commit_time_and_machine():
    made = record.new_record("layer", "cpu", {}, [])
    assert set(made) == {"schema", "name", "commit", "dirty", "utc", "env", "case", "runs"}
    assert set(made["env"]) == {"cpu", "threads", "torch", "triton"}
    assert made["env"]["cpu"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_record_holds_nan(value, tmp_path):
    with pytest.raises(ValueError):
        record.write(tmp_path / "layer.json", {"runs": [{"error": value}]})
    assert not list(tmp_path.iterdir())


def test_a_tracked_change_makes_the_commit_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        # No hook and no signature that the developer's own settings may ask for.
        plain = ["-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *author, *plain, *arguments], check=True)

    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert (record.commit()["commit"], record.commit()["dirty"]) == (None, None)
    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    (tmp_path / "untracked").write_text("")
    assert record.commit()["commit"] and record.commit()["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert record.commit()["dirty"] is True
