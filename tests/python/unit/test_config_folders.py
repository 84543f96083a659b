"""Folders that the run could not write to are refused before it starts."""

from torchtitan_cpp.config import load_config, run_problems


def test_a_dump_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def found(folder):
        loaded = load_config([f"--job.dump_folder={folder}"])
        problems = run_problems(loaded, world_size=1)
        return [p.message for p in problems if p.field == "job.dump_folder"]

    assert found(tmp_path / "new/run") == []
    assert found(tmp_path / "file/run") == [f"{tmp_path / 'file'} is not a folder"]
    monkeypatch.setattr("os.access", lambda path, mode: path != str(tmp_path))
    (message,) = found(tmp_path / "new/run")
    assert message.endswith(f"can be written, found {tmp_path}")


def test_a_checkpoint_folder_elsewhere_that_cannot_be_written(tmp_path):
    """Known before the first save is due, which may be hours later."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/linked").symlink_to(tmp_path / "unmounted")

    def found(folder, *flags):
        flags += (f"--job.dump_folder={tmp_path / 'run'}", "--checkpoint.folder")
        loaded = load_config([*flags, str(folder)])
        problems = run_problems(loaded, world_size=1)
        return [p.message for p in problems if p.field == "checkpoint.folder"]

    saves = "--checkpoint.enable"
    assert found(tmp_path / "new", saves) == found("new", saves) == []
    not_a_folder = f"{tmp_path / 'file'} is not a folder"
    assert found(tmp_path / "file/new", saves) == [not_a_folder]
    (message,) = found("linked", saves)
    assert message.endswith(
        f"is a link to {tmp_path / 'unmounted'}, which is not there"
    )
    assert found("linked") == found("linked", saves, "--checkpoint.load_only") == []
