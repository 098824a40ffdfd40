"""Run folders: resuming, refusing, and never leaving half a file."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difixcli import digests
from difixcli.cluster.jobs import Jobs
from difixcli.curation.scene_list import listed
from difixcli.errors import InputError
from difixcli.evaluation.fid import inception
from difixcli.fixer.weights import load_network
from difixcli.reconstruction.gaussians import Gaussians
from difixcli.reconstruction.run_config import read_config
from difixcli.runs import (
    Run,
    atomic,
    file_name,
    find_run,
    fingerprint,
    read_image,
    read_json,
    write_image,
    write_json,
)
from difixcli.scenes.co3d import _entries
from difixcli.scenes.colmap_files import read_cameras
from difixcli.scenes.image_paths import image_header
from difixcli.scenes.ply import read_points
from difixcli.tensor_files import read_pickled, read_safetensors
from difixcli.training.tars import members_by_key
from difixcli.video import read_video

ARGUMENTS = {"method": "nerfacto", "seed": 0}


def test_the_same_command_resumes_and_another_is_refused(tmp_path: Path) -> None:
    first = Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "a"})
    (first.folder / "made.txt").write_text("work")
    first.time("training", 1.5)
    first.save()
    again = Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "a"})
    assert again.resumed and again.record["timings"] == {"training": 1.5}
    with pytest.raises(InputError, match=r"another run \(difix distill, with another seed: .*, not 1\)"):
        Run.open(tmp_path / "run", "distill", {**ARGUMENTS, "seed": 1}, {"scene": "a"})
    with pytest.raises(InputError, match=r"with another compare: False, not True"):
        Run.open(tmp_path / "run", "distill", {**ARGUMENTS, "compare": True}, {"scene": "a"})
    with pytest.raises(InputError, match=r"with another seed: 0, not False"):  # which the fresh one has not
        Run.open(tmp_path / "run", "distill", {"method": "nerfacto"}, {"scene": "a"})
    with pytest.raises(InputError, match=r"another run \(difix distill, before this changed: scene\)"):
        Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "changed images"})
    with pytest.raises(InputError, match=r"another run \(difix distill\); choose"):
        Run.open(tmp_path / "run", "fix", ARGUMENTS, {})


def test_two_processes_never_work_in_one_run(tmp_path: Path) -> None:
    """The lock goes with the process, however it ends; a shared run lets those in that share it."""
    line = (
        "import sys; from pathlib import Path; from difixcli.runs import Run\n"
        "Run.open(Path(sys.argv[1]), 'distill', {'seed': 0}, {}, shared=eval(sys.argv[2]))\n"
        "print('open', flush=True); sys.stdin.read()"
    )

    def start(shared: bool) -> subprocess.Popen:
        arguments = [sys.executable, "-c", line, str(tmp_path / "run"), str(shared)]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        return process

    with start(False) as other:
        for force in (False, True):
            with pytest.raises(InputError, match="Another process is at work"):
                Run.open(tmp_path / "run", "distill", {"seed": 0}, {}, force)
        with pytest.raises(InputError, match="Another process is at work"):
            Run.open(tmp_path / "run", "distill", {"seed": 1}, {}, force=True)
        other.kill()
    assert Run.open(tmp_path / "run", "distill", {"seed": 0}, {}).resumed
    (tmp_path / "run").rename(tmp_path / "old")
    with start(True) as first, start(True) as second:
        for force in (False, True):
            with pytest.raises(InputError, match="Another process is at work"):
                Run.open(tmp_path / "run", "distill", {"seed": 0}, {}, force)
        first.kill()
        second.kill()


def test_force_replaces_runs_but_never_a_strangers_folder(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "distill", ARGUMENTS, {})
    (run.folder / "old.txt").write_text("old")
    fresh = Run.open(tmp_path / "run", "distill", {**ARGUMENTS, "seed": 1}, {}, force=True)
    assert not fresh.resumed and not (run.folder / "old.txt").exists()
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="holds no run of difix"):
        Run.open(tmp_path / "holiday", "distill", ARGUMENTS, {}, force=True)
    assert (tmp_path / "holiday" / "photo.jpg").read_bytes() == b"precious"


def test_a_run_that_has_written_nothing_gives_way(tmp_path: Path) -> None:
    """What stopped it was most likely its input; mended, the same line is another command."""
    Run.open(tmp_path / "run", "fix", ARGUMENTS, {"source": "broken"})
    (tmp_path / "run" / "checkpoints").mkdir()
    again = Run.open(tmp_path / "run", "fix", ARGUMENTS, {"source": "mended"})
    assert not again.resumed and again.record["inputs"] == {"source": "mended"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("content", ["[1, 2]", '{"name": "training", "epochs": 3}', '{"command": "train"}'])
def test_force_spares_what_another_program_called_a_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    for force in (False, True):
        with pytest.raises(InputError, match="did not write"):
            Run.open(tmp_path / "run", "distill", ARGUMENTS, {}, force=force)
    assert find_run(tmp_path, "distill", ARGUMENTS, {}) is None
    assert (tmp_path / "run" / "run.json").read_text() == content


def test_force_spares_what_is_about_to_be_read(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", "finetune", ARGUMENTS, {}).finish({})
    image = tmp_path / "run" / "renders" / "a.png"
    write_image(image, np.zeros((4, 4, 3)))
    for path in (image, image.parent, tmp_path / "run", tmp_path / "run" / ".." / "run"):
        with pytest.raises(InputError, match="is read from it"):
            Run.open(tmp_path / "run", "fix", {}, {}, force=True, reads=[path])
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match="is read from it"):
        Run.open(tmp_path / "link", "fix", {}, {}, force=True, reads=[image])
    assert image.is_file()
    assert not Run.open(tmp_path / "run", "fix", {}, {}, force=True, reads=[tmp_path / "other.png"]).resumed


def test_an_earlier_run_goes_only_when_the_new_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(tmp_path / "run", "distill", ARGUMENTS, {})
    (run.folder / "weights").write_text("precious")

    def full(self: Run, **_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Run, "save", full)
        Run.open(tmp_path / "run", "distill", {}, {}, force=True)
    assert (run.folder / "weights").read_text() == "precious"
    Run.open(tmp_path / "run", "distill", {}, {}, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and not (run.folder / "weights").exists()


def test_output_that_is_a_file_or_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Run.open(tmp_path / "file", "fix", {}, {})
    with pytest.raises(InputError, match="cannot be written"):
        Run.open(tmp_path / "file" / "below", "fix", {}, {})


def test_unfinished_runs_are_found_by_command_and_arguments(tmp_path: Path) -> None:
    Run.open(tmp_path / "1", "distill", ARGUMENTS, {}).finish({})
    second = Run.open(tmp_path / "2", "distill", ARGUMENTS, {})
    assert find_run(tmp_path, "distill", ARGUMENTS, {}) == second.folder
    assert find_run(tmp_path, "distill", {**ARGUMENTS, "seed": 3}, {}) is None
    assert find_run(tmp_path, "distill", ARGUMENTS, {"scene": "changed"}) is None
    second.finish({"psnr": 20.0})
    assert find_run(tmp_path, "distill", ARGUMENTS, {}) == second.folder
    assert read_json(second.folder / "run.json")["results"] == {"psnr": 20.0}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"kept": True})

    class Boom(Exception):
        pass

    with pytest.raises(Boom), atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("{")
        raise Boom
    assert read_json(tmp_path / "a.json") == {"kept": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_images_round_trip_and_broken_ones_are_named(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((7, 5, 3)).astype(np.float32)
    write_image(tmp_path / "a.png", image)
    assert np.abs(read_image(tmp_path / "a.png") - image).max() <= 0.5 / 255 + 1e-6
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        read_image(tmp_path / "b.png")
    (tmp_path / "c.json").write_text('{"train": {')
    with pytest.raises(InputError, match=r"c\.json is not valid JSON"):
        read_json(tmp_path / "c.json")


def test_fingerprints_see_content_whatever_size_and_date_say(tmp_path: Path) -> None:
    """A photo that is replaced by another of the same name, size and date is another; one that is only touched is not.

    Large files, whose hashes are kept, are no exception.
    """
    for size in (2000, 2**20 + 1):
        path, other = tmp_path / "a.png", tmp_path / "b.png"
        path.write_bytes(b"a" * size)
        other.write_bytes(b"o" * size)
        first = fingerprint([path, other])
        assert first == fingerprint([other, path])
        facts = path.stat()
        path.write_bytes(b"c" * size)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert path.stat().st_mtime_ns == facts.st_mtime_ns
        second = fingerprint([path, other])
        assert second != first
        os.utime(path)
        assert fingerprint([path, other]) == second
        moved = tmp_path / "elsewhere" / "a.png"
        moved.parent.mkdir(exist_ok=True)
        moved.write_bytes(b"c" * size)
        assert fingerprint([moved, other]) == second


def test_hashes_of_large_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.png"
    path.write_bytes(bytes(2**20))
    first = fingerprint([path])
    kept = read_json(tmp_path / "cache" / "digests.json")
    assert list(kept) == [str(path)]
    # what is kept is taken, until the file changes
    kept[str(path)][-1] = "0" * 64
    write_json(tmp_path / "cache" / "digests.json", kept)
    assert fingerprint([path]) != first
    path.touch()
    assert fingerprint([path]) == first
    for broken in ("{", '{"a": 3}', '{"a": [1]}', json.dumps({str(path): []})):
        (tmp_path / "cache" / "digests.json").write_text(broken)
        assert fingerprint([path]) == first


def test_more_hashes_than_are_kept_are_not_all_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_LARGE", 0)
    monkeypatch.setattr(digests, "_MOST", 50)
    files = [tmp_path / f"{number}.png" for number in range(60)]
    for path in files:
        path.write_bytes(b"x")
    opened, read = Path.open, []

    def counting(path: Path, *given: object, **named: object) -> object:
        if path.suffix == ".png":
            read.append(path)
        return opened(path, *given, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", counting)
    for most in (60, 50):  # of which some were kept
        read.clear()
        for path in files:
            digests.digests_of([path])
        assert len(read) <= most
        assert len(read_json(tmp_path / "cache" / "digests.json")) == 50


def test_very_large_files_count_by_their_date(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)  # nothing of it is on the disk
    first = fingerprint([path])
    os.utime(path, ns=(1, 1))
    assert fingerprint([path]) != first


def test_large_manifests_count_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.json"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    first = fingerprint([path], content=False)
    os.utime(path, ns=(1, 1))
    assert fingerprint([path], content=False) == first
    with path.open("r+b") as file:
        file.write(b"{")
    os.utime(path, ns=(1, 1))
    assert fingerprint([path], content=False) != first


def test_a_file_that_holds_the_same_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for text in ("one", "two"):
        with atomic(path, kept=True) as temporary:
            temporary.write_text(text)
        os.utime(path, ns=(1, 1))
    for text in ("two", "six"):
        with atomic(path, kept=True) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text and (path.stat().st_mtime_ns == 1) == (text == "two")
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"psnr": [math.inf, math.nan, 1.5], "n": (2,)})
    assert read_json(tmp_path / "a.json") == {"psnr": [None, None, 1.5], "n": [2]}


def test_a_full_disk_is_told_with_the_file_that_was_written(tmp_path: Path) -> None:
    """The system names none where a file is open already."""
    with pytest.raises(OSError) as refused, atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert refused.value.filename == str(tmp_path / "a.json") and not list(tmp_path.iterdir())
    # what an error says that is none of the system's stays
    with pytest.raises(OSError, match=r"image file is truncated$"), atomic(tmp_path / "a.json"):
        raise OSError("image file is truncated")


def test_file_names_drop_the_suffix_of_an_image_only() -> None:
    assert file_name("images/a.JPG") == "images-a" and file_name("a.png") == "a"
    assert (
        file_name("run.2/cam.1/frame") == "run.2-cam.1-frame"
        and file_name("outputs/fixer-v1.5") == "outputs-fixer-v1.5"
    )


def test_one_reader_for_every_kind_of_image(tmp_path: Path) -> None:
    grey = np.array([[0, 65535], [32768, 257]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_image(tmp_path / "deep.png")[..., 1], grey / 65535, atol=1e-6)
    half = np.full((2, 3, 4), 255, np.uint8)
    half[:, 0, 3] = 0
    Image.fromarray(half).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png")[:, 0].max() == 0 and read_image(tmp_path / "clear.png")[:, 1:].min() == 1
    with_alpha = read_image(tmp_path / "clear.png", alpha=True)
    assert with_alpha.shape == (2, 3, 4) and with_alpha[..., :3].min() == 1 and with_alpha[:, 0, 3].max() == 0
    assert read_image(tmp_path / "deep.png", alpha=True)[..., 3].min() == 1
    lying = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying.save(tmp_path / "phone.png", exif=exif)
    assert read_image(tmp_path / "phone.png").shape == (2, 3, 3)
    upright = read_image(tmp_path / "phone.png", upright=True)
    np.testing.assert_array_equal(upright, np.rot90(read_image(tmp_path / "phone.png"), -1))


def test_a_folder_that_is_removed_while_running_is_told(tmp_path: Path) -> None:
    """Neither `done` in a folder that holds nothing else, nor a fault of ours."""
    import shutil

    import typer
    from typer.testing import CliRunner

    from difixcli import console

    run = Run.open(tmp_path / "run", "fix", ARGUMENTS, {})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match="was removed while"):
        run.finish({})
    assert not (tmp_path / "run").exists()

    app_of_one = typer.Typer()

    @app_of_one.command()
    @console.handled
    def work(as_json: bool = True) -> None:
        folder = Run.open(tmp_path / "run", "fix", ARGUMENTS, {}).folder
        shutil.rmtree(folder)
        (folder / "a.txt").write_text("lost")

    ended = CliRunner().invoke(app_of_one)
    assert ended.exit_code == 2 and "was removed while" in ended.stderr and '"error"' in ended.stdout
    # and what another command of this process ends with is its own
    Run.open(tmp_path / "run", "fix", ARGUMENTS, {}).finish({})


def test_a_record_of_another_form_is_told(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "fix", ARGUMENTS, {})
    for key, value in (("arguments", 3), ("inputs", {"a": 1}), ("timings", []), ("seconds", None)):
        write_json(tmp_path / "run" / "run.json", {**run.record, key: value})
        with pytest.raises(InputError, match=rf"run\.json.* {key}"):
            Run.open(tmp_path / "run", "fix", ARGUMENTS, {})


@pytest.mark.parametrize("name", ["a" * 250 + ".png", "é" * 125 + ".png", "a.png"])
def test_names_as_long_as_the_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, np.zeros((8, 8, 3)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from difixcli import console

    app_of_one = typer.Typer()

    @app_of_one.command()
    @console.handled
    def work() -> None:
        Run.open(tmp_path / "a-run", "fix", ARGUMENTS, {})
        with open("/dev/full", "w") as file:
            file.write("a")

    ended = CliRunner().invoke(app_of_one)
    assert ended.exit_code == 2 and "No space left" in ended.stderr and "a-run" in ended.stderr.replace("\n", "")
    Run.open(tmp_path / "a-run", "fix", ARGUMENTS, {}).finish({})


def test_a_refused_command_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from difixcli import console

    app_of_one = typer.Typer()
    (tmp_path / "here").mkdir()

    @app_of_one.command()
    @console.handled
    def work(folder: Path, writes: bool = False) -> None:
        run = Run.open(folder, "fix", ARGUMENTS, {})
        if writes:
            write_json(run.folder / "made.json", {})
        raise InputError("It cannot be done.")

    def left(*line: str) -> list[str]:
        ended = CliRunner().invoke(app_of_one, line)
        assert ended.exit_code == 2 and "cannot be done" in ended.stderr
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name[0] != ".")

    assert left(str(tmp_path / "new" / "er" / "run")) == ["here"]
    assert left(str(tmp_path / "here" / "run")) == ["here"]
    assert left(str(tmp_path / "here")) == ["here", "here/run.json"]  # it was there before
    made = ["new", "new/run", "new/run/made.json", "new/run/run.json"]
    assert left(str(tmp_path / "new" / "run"), "--writes") == ["here", "here/run.json", *made]
    assert left(str(tmp_path / "new" / "run")) == ["here", "here/run.json", *made]  # work that is there is kept


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder in which one of the tests' own files can be made unreadable, also to root: it works as nobody."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        Path(name).chmod(0o755)
        root = os.geteuid() == 0
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def _read_list(path: Path) -> object:
    return listed(f"@{path}")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.png", read_image),
        ("a.jpg", image_header),
        ("a.json", read_json),
        ("a.pkl", lambda path: read_pickled(path, "")),
        ("a.safetensors", lambda path: read_safetensors(path, "")),
        ("a.ply", read_points),
        ("b.ply", Gaussians.read),
        ("cameras.bin", lambda path: read_cameras(path.parent)),
        ("cameras.txt", lambda path: read_cameras(path.parent)),
        ("frame_annotations.jgz", _entries),
        ("a.tar", members_by_key),
        ("scenes.txt", _read_list),
        ("config.yml", read_config),
        ("a.mp4", read_video),
        ("a.pth", inception),
        ("checkpoint.pkl", lambda path: load_network(path.parent)),  # a folder that holds one
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    guarded: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = guarded / name
    for other in ("images", "points3D"):
        (guarded / other).with_suffix(path.suffix).write_bytes(b"")
    path.write_bytes(b"\xff\xfeanything")
    with pytest.raises(InputError) as damaged:  # what it imports is imported then: nobody may not read that either
        read(path)
    assert "ermission" not in str(damaged.value)
    path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(InputError, match=rf"{name}.*Permission denied.*chmod"):
        read(path)


def test_a_folder_in_place_of_a_file_is_not_called_damaged(tmp_path: Path) -> None:
    for read in (read_image, read_json, lambda path: read_pickled(path, ""), lambda path: read_safetensors(path, "")):
        with pytest.raises(InputError, match="Is a directory"):
            read(tmp_path)


def test_a_shared_run_may_be_begun_by_another_process_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a process's look for it and its own beginning."""
    look, looks = Run.held, []

    def held(*given: object) -> Run | None:
        looks.append(given)
        if len(looks) == 1:
            Run.open(tmp_path / "run", "curate", {"seed": 0}, {}, shared=True)
            (tmp_path / "run" / "scene.png").touch()
            return None
        return look(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "held", held)
    opened = Run.open(tmp_path / "run", "curate", {"seed": 0}, {}, shared=True)
    assert opened.resumed and (tmp_path / "run" / "scene.png").is_file() and len(looks) > 1
    with pytest.raises(InputError, match="another run"):
        Run.open(tmp_path / "run", "curate", {"seed": 1}, {}, shared=True)


def test_a_shared_run_with_jobs_gives_way_to_none(tmp_path: Path) -> None:
    """They may wait in a cluster's queue, or be at work on something that is not written yet."""
    Run.open(tmp_path / "run", "curate", {"seed": 0}, {}, shared=True)
    Jobs(tmp_path / "run").add({"room": ["curate", "room"]})
    for command, seed in (("curate", 1), ("distill over scenes", 0)):
        with pytest.raises(InputError, match="another run"):
            Run.open(tmp_path / "run", command, {"seed": seed}, {}, shared=True)
    assert Run.open(tmp_path / "run", "curate", {"seed": 0}, {}, shared=True).resumed
    assert not Run.open(tmp_path / "run", "curate", {"seed": 1}, {}, force=True, shared=True).resumed
