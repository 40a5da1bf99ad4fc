"""A record says where its numbers come from, and survives the file."""

import argparse
import errno
import json
import os
import subprocess

import pytest

from bench import record


def test_record_survives_the_file(tmp_path):
    made = record.new_record("layer", "cpu", {"T": 28}, [{"impl": "ours", "time_ms": [1.5, 0.1]}])
    path = tmp_path / "new folder" / "layer.json"
    record.write(path, made)
    assert json.loads(path.read_text()) == made
    record.write(path, made, made | {"name": "second"})
    assert record.read(path) == [made, made | {"name": "second"}]
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "layer.json"
    made = record.new_record("layer", "cpu", {}, [])
    record.write(path, made)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device.*layer.json"):
        record.write(path, made | {"name": "second"})
    assert record.read(path) == [made]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "No such file"),
        ("", "no record"),
        ('{"schema": 1', "line 1"),
        ("[]", "not a record"),
        ('{"schema": 0}', "not a record of schema 1"),
    ],
)
def test_what_is_no_record_is_refused_by_name(content, reason, tmp_path):
    path = tmp_path / "layer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(record.RecordError, match=reason) as caught:
        record.read(path)
    assert str(path) in str(caught.value)


def test_where_nothing_can_be_written_is_known_before(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert record.writable(tmp_path / "new" / "folder" / "x.json").name == "x.json"
    for path in (tmp_path, file / "x.json", file / "below" / "x.json"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is a folder|is no folder"):
            record.writable(path)
    assert list(tmp_path.iterdir()) == [file]


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
    monkeypatch.delenv("FUSED_LSTM_COMMIT", raising=False)
    assert (record.commit()["commit"], record.commit()["dirty"]) == (None, None)
    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    (tmp_path / "untracked").write_text("")
    assert record.commit()["commit"] and record.commit()["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert record.commit()["dirty"] is True


@pytest.mark.parametrize(("described", "dirty"), [("1a2b3c4", False), ("1a2b3c4-dirty", True)])
def test_files_without_git_have_the_commit_they_are_told(described, dirty, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setenv("FUSED_LSTM_COMMIT", described)
    assert (record.commit()["commit"], record.commit()["dirty"]) == ("1a2b3c4", dirty)
