"""Run folders: resuming, refusing, and never leaving half a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from difixcli.errors import InputError
from difixcli.runs import Run, atomic, find_unfinished, fingerprint, read_image, read_json, write_image, write_json

ARGUMENTS = {"method": "nerfacto", "seed": 0}


def test_the_same_command_resumes_and_another_is_refused(tmp_path: Path) -> None:
    first = Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "a"})
    first.time("training", 1.5)
    first.save()
    again = Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "a"})
    assert again.resumed and again.record["timings"] == {"training": 1.5}
    with pytest.raises(InputError, match="already holds another run"):
        Run.open(tmp_path / "run", "distill", {**ARGUMENTS, "seed": 1}, {"scene": "a"})
    with pytest.raises(InputError, match="already holds another run"):
        Run.open(tmp_path / "run", "distill", ARGUMENTS, {"scene": "changed images"})


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


def test_output_that_is_a_file_or_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Run.open(tmp_path / "file", "fix", {}, {})
    with pytest.raises(InputError, match="cannot be written"):
        Run.open(tmp_path / "file" / "below", "fix", {}, {})


def test_unfinished_runs_are_found_by_command_and_arguments(tmp_path: Path) -> None:
    Run.open(tmp_path / "1", "distill", ARGUMENTS, {}).finish({})
    second = Run.open(tmp_path / "2", "distill", ARGUMENTS, {})
    assert find_unfinished(tmp_path, "distill", ARGUMENTS) == second.folder
    assert find_unfinished(tmp_path, "distill", {**ARGUMENTS, "seed": 3}) is None
    second.finish({"psnr": 20.0})
    assert find_unfinished(tmp_path, "distill", ARGUMENTS) is None
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


def test_fingerprints_see_content_of_json_and_sizes_of_images(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[1]")
    (tmp_path / "i.png").write_bytes(b"1234")
    files = [tmp_path / "t.json", tmp_path / "i.png"]
    before = fingerprint(files)
    assert before == fingerprint(files[::-1])
    (tmp_path / "t.json").write_text("[2]")
    assert fingerprint(files) != before
