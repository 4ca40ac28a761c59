"""Files of a run: whole or not at all, checked when read, never unpickled."""

import errno
import json
import os
import pickle

import pytest
import torch

from hwsim.config import RunError
from hwsim.recipe import checkpoint
from hwsim.recipe.checkpoint import (
    FORMAT,
    load_tensors,
    read_json,
    save_tensors,
    tensor_shapes,
    write_json,
    write_whole,
)
from hwsim.recipe.folder import Folder, read_stage
from hwsim.recipe.progress import Progress

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "empty": torch.zeros(0, 4)}


class Killed(BaseException):
    """The process is gone: nothing but the file system is left."""


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / "x", b"old")
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_that_is_killed_while_writing_leaves_the_old_file(tmp_path, monkeypatch, moment):
    write_whole(tmp_path / "x", b"old")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(*((checkpoint.os, "fsync") if moment == "fsync" else (checkpoint.Path, "replace")), killed)
    with pytest.raises(Killed):
        write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    monkeypatch.undo()
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_whole(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as e:
        write_whole(tmp_path / "x", b"new")
    assert e.value.filename == str(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_json_is_read_as_written(tmp_path):
    value = {"format": FORMAT, "rows": [{"x": 0.1, "n": 3}], "none": None}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "rows", "none") == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ('{"format": 2', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ("[1]", "written in format None, this hwsim reads 2"),
        ('{"format": 1, "key": "k"}', "written in format 1, this hwsim reads 2; use another --runs folder"),
        ('{"format": 99, "key": "k"}', "written in format 99, this hwsim reads 2; use another --runs folder"),
        ('{"format": 2}', "lacks 'key'"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError) as e:
        read_json(tmp_path / "x.json", "key")
    assert str(e.value).startswith(f"{tmp_path / 'x.json'}: ") and says in str(e.value) and "\n" not in str(e.value)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone.json: cannot be read"):
        read_json(tmp_path / "gone.json")


# --- tensors ------------------------------------------------------------------------------------------------------


def test_tensors_are_loaded_as_saved_with_what_belongs_to_them(tmp_path):
    sha256 = save_tensors(tmp_path / "w", {**TENSORS, "view": torch.arange(8.0)[::2]}, {"epoch": 3})
    tensors, about = load_tensors(tmp_path / "w", sha256)
    assert about == {"format": FORMAT, "epoch": 3}
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())
    assert torch.equal(tensors["view"], torch.tensor([0.0, 2, 4, 6]))
    assert tensor_shapes(tmp_path / "w") == {"a": (2, 3), "b": (2,), "empty": (0, 4), "view": (4,)}


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, {"epoch": 3})
    save_tensors(tmp_path / "y", TENSORS, {"epoch": 3})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    sha256 = save_tensors(tmp_path / "w", TENSORS, {})
    whole = (tmp_path / "w").read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path / "w").write_bytes(whole[:end])
        with pytest.raises(RunError, match="not a whole safetensors file"):
            load_tensors(tmp_path / "w")
        with pytest.raises(RunError, match=r"damaged or changed; delete .* to do this stage again"):
            load_tensors(tmp_path / "w", sha256)


def test_one_changed_bit_is_found(tmp_path):
    sha256 = save_tensors(tmp_path / "w", TENSORS, {})
    payload = bytearray((tmp_path / "w").read_bytes())
    payload[-1] ^= 1
    (tmp_path / "w").write_bytes(payload)
    with pytest.raises(RunError, match=f"but {sha256[:12]}… was written"):
        load_tensors(tmp_path / "w", sha256)


def test_tensors_of_another_format_or_program_are_refused(tmp_path, monkeypatch):
    import safetensors.torch

    safetensors.torch.save_file(TENSORS, tmp_path / "w")
    with pytest.raises(RunError, match="written in format None, this hwsim reads 2; train it again"):
        load_tensors(tmp_path / "w")
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    save_tensors(tmp_path / "w", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(RunError, match="written in format 1, this hwsim reads 2; train it again"):
        load_tensors(tmp_path / "w")
    with pytest.raises(RunError, match=r"gone: cannot be read: No such file"):
        load_tensors(tmp_path / "gone")


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "w").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunError):
        load_tensors(tmp_path / "w")
    with pytest.raises(RunError):
        read_json(tmp_path / "w")
    assert not (tmp_path / "sprung").exists()


# --- a stage's record ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A run folder with one finished stage."""
    folder = Folder(tmp_path, "r", "0123456789")
    save_tensors(folder.stage("a") / "weights.safetensors", TENSORS, {})
    (folder.stage("a") / "resume.safetensors").write_text("left over")
    (folder.stage("a") / "weights.safetensors.part99").write_text("left over")
    folder.finish("a", {"key": "k", "rows": [{"accuracy": 0.5}]})
    return folder


def test_a_finished_stage_is_found_by_its_key(folder):
    assert sorted(os.listdir(folder.path / "a")) == ["stage.json", "weights.safetensors"]
    record, where = folder.finished("a", "k")
    assert where == folder.path / "a" and record["rows"] == [{"accuracy": 0.5}]
    assert folder.finished("b", "another") is None


def test_a_stage_of_another_run_is_found_by_its_key(folder, tmp_path):
    other = Folder(tmp_path, "q", "987654321")
    assert other.finished("with-another-name", "k")[1] == folder.path / "a"


@pytest.mark.parametrize("damage", ["rows", "weights", "no weights", "no seal", "truncated", "format"])
def test_a_damaged_stage_is_refused_here_and_passed_over_elsewhere(folder, tmp_path, damage):
    path, weights = folder.path / "a" / "stage.json", folder.path / "a" / "weights.safetensors"
    record = json.loads(path.read_text())
    if damage == "rows":
        path.write_text(path.read_text().replace("0.5", "0.9"))
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no seal":
        del record["seal"]
        path.write_text(json.dumps(record))
    elif damage == "truncated":
        path.write_text(path.read_text()[:-20])
    else:
        path.write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(RunError) as e:
        folder.finished("a", "k")
    assert str(folder.path / "a") in str(e.value) and "\n" not in str(e.value)
    assert Folder(tmp_path, "q", "987654321").finished("a", "k") is None


def test_a_stage_of_other_settings_is_refused(folder):
    with pytest.raises(RunError, match=r"belongs to other settings; delete .*a to do this stage again"):
        folder.finished("a", "other")


def test_a_copied_record_is_sealed_again(folder):
    record = read_stage(folder.path / "a")
    assert "seal" not in record
    folder.finish("a", {**record, "rows": []})
    assert read_stage(folder.path / "a")["rows"] == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for runs in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(RunError, match="cannot be written: .*; give a folder that can, with --runs"):
            Folder(runs, "r", "0123456789")


def test_what_a_killed_process_left_is_swept_away(folder):
    (folder.path / "recipe.yaml.part77").write_text("half")
    with folder.locked(Progress(quiet=True)):
        pass
    assert not (folder.path / "recipe.yaml.part77").exists()


def test_one_process_at_a_time_holds_a_folder(folder, capsys):
    fcntl = pytest.importorskip("fcntl")
    with (
        folder.locked(Progress(quiet=True)),
        (folder.path / ".lock").open("a+") as second,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with folder.locked(Progress()):
        pass
    assert capsys.readouterr().err == ""


def test_a_file_system_without_locks_is_told_and_used(folder, capsys, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with folder.locked(Progress()):
        pass
    assert "this file system has no locks" in capsys.readouterr().err


def test_a_state_that_was_half_written_when_its_process_was_killed_is_swept_away_with_the_rest(tmp_path):
    folder = Folder(tmp_path, "r", "0123456789abcdef")
    here = folder.stage("train")
    for name in ("resume.safetensors", "resume.safetensors.part77", "weights.safetensors.part77"):
        (here / name).write_bytes(b"x")
    (here / "weights.safetensors").write_bytes(b"y")
    folder.finish("train", {"key": "k"})
    assert sorted(p.name for p in here.iterdir()) == ["stage.json", "weights.safetensors"]
