"""Maps of what photos have seen: beside each fix of a distillation, along an enhanced path, and in the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused, told
from PIL import Image

from difixcli.distillation import distill
from difixcli.errors import InputError
from difixcli.evidence import marks_of
from difixcli.fixer import new_small_fixer
from difixcli.fixer.confidence import SUBSTANCE
from difixcli.frames.marks import read_marks, shares
from difixcli.frames.pictures import listed_images
from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import References
from difixcli.runs import CONFIDENCE, read_image, write_image
from difixcli.scenes import load_scene, make_split

SIZE = 48
NEAR, FAR = "images-train_002", "images-train_010"
TOY = ("--size", SIZE, "--iterations", 60, "--further", 20, "--set", "max_gaussians=400", "--json")


@pytest.fixture(scope="module")
def fixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_small_fixer("tiny", seed=0).save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


@pytest.fixture(scope="module")
def line(arc: Path, fixer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Photos of the arc's beginning train; one between them is measured, and one at its other end."""
    names = [frame.name for frame in load_scene(str(arc), SIZE).frames]
    file = tmp_path_factory.mktemp("split") / "split.json"
    file.write_text(json.dumps({"train": [names[i] for i in (0, 1, 3, 4)], "test": [names[i] for i in (2, 10)]}))
    split = ("--split", f"file:{file}", "--rounds", 2, "--step", 9, "--no-guard", "--drop-below", 0)
    return ["distill", arc, "--fixer", fixer, *TOY, *split]


@pytest.fixture(scope="module")
def marked(line: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("marked") / "run"
    return folder, told(difix(*line, "--confidence", "-o", folder))


def _pictures(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def _is_map(name: str) -> bool:
    """Whether a picture of a run is one of `marks`; rounds have grey weights that are called alike."""
    return name.endswith(".target.confidence.png" if name.startswith("rounds/") else CONFIDENCE)


def _view(folder: Path, number: int, name: str) -> dict:
    record = json.loads((folder / "rounds" / f"{number:02d}" / "round.json").read_text())
    return next(view for view in record["views"] if view["target"] == name)


def test_each_fix_of_a_run_has_a_map_beside_it(marked: tuple[Path, dict]) -> None:
    folder, _ = marked
    maps = {name for name in _pictures(folder) if _is_map(name)}
    beside = {f"renders/{variant}/{name}{CONFIDENCE}" for variant in ("fixed", "enhanced") for name in (NEAR, FAR)}
    assert maps == beside | {f"rounds/01/{name}.target.confidence.png" for name in (NEAR, FAR)}
    for name in maps:
        map_of = read_image(folder / name)
        np.testing.assert_allclose(map_of.sum(-1), 1, atol=2 / 255)
        assert map_of.shape == read_image(folder / name.replace(CONFIDENCE, ".png")).shape
    for name in (NEAR, FAR):
        first, second = (_view(folder, number, name) for number in (1, 2))
        assert second["kept"] and second["files"] == first["files"]
        found = shares(read_marks(folder / "rounds" / first["files"]["target.confidence"]))
        for key, share in found.items():
            assert first["figures"][key] == second["figures"][key] == pytest.approx(share, abs=1 / 255)


def test_what_no_photo_shows_is_not_seen(marked: tuple[Path, dict], line: list[object]) -> None:
    """The view between photos is seen by them; of the one across the room photos show less, and where photos alone
    have taught nothing, it is invented.
    """
    folder, _ = marked
    arc, split = str(line[1]), str(line[line.index("--split") + 1])
    scene = load_scene(arc, SIZE)
    chosen = make_split(scene, split)
    photos_only = Reconstruction.load(folder / "photos", scene, chosen.train)
    paths = [folder / "renders" / "enhanced", folder / "rounds" / "01"]
    for path, ending in zip(paths, (CONFIDENCE, ".target.confidence.png"), strict=True):
        near, far = (shares(read_marks(path / f"{name}{ending}")) for name in (NEAR, FAR))
        assert near["seen"] > far["seen"] + 0.2 and far["invented"] > 2 * near["invented"], (near, far)
        for name in (NEAR, FAR):
            index = next(i for i in chosen.test if scene.file_names[i] == name)
            shown = photos_only.render(scene.frames[index].camera).accumulation
            trusted = 1 - read_marks(path / f"{name}{ending}")[..., 0]
            assert (trusted <= shown / SUBSTANCE + 2 / 255).all()


def test_marks_of_what_is_seen_beside_what_is_not() -> None:
    """Quarters: a photo shows the upper ones and denies the right; of the lower right, the render shows nothing."""
    fixed = np.full((64, 64, 3), 0.5, np.float32)
    accumulation, visible, photo = np.ones((64, 64), np.float32), np.zeros((1, 64, 64), np.float32), fixed[None].copy()
    accumulation[32:, 32:], visible[0, :32], photo[0, :32, 32:] = 0, 1, (1, 0, 0)
    render = Render(fixed * accumulation[..., None], accumulation, np.ones((64, 64), np.float32))
    marked = marks_of(render, fixed, References([0], [photo[0]], photo, visible))
    quarters = [marked[rows, columns][8:-8, 8:-8] for rows in (slice(32), slice(32, 64)) for columns in
                (slice(32), slice(32, 64))]  # fmt: skip
    wanted = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 0)]  # seen, invented, agreed, invented
    for quarter, color in zip(quarters, wanted, strict=True):
        np.testing.assert_allclose(quarter.mean(axis=(0, 1)), color, atol=0.06)


def test_maps_disturb_nothing(marked: tuple[Path, dict], line: list[object], tmp_path: Path) -> None:
    folder, said = marked
    assert told(difix(*line, "-o", tmp_path / "plain"))["results"] == said["results"]
    plain, pictures = _pictures(tmp_path / "plain"), _pictures(folder)
    assert plain == {name: held for name, held in pictures.items() if not _is_map(name)}
    assert "confidence" not in json.loads((tmp_path / "plain" / "run.json").read_text())["arguments"]
    refused(difix(*line, "--confidence", "-o", tmp_path / "plain"), "plain")


@pytest.mark.parametrize("moment", [2, 4, 7])
def test_stopped_between_maps_it_goes_on_to_the_same_bytes(
    moment: int, marked: tuple[Path, dict], line: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first round's maps, and in those of the final renders."""
    from difixcli.distillation import renders

    calls, own = 0, distill.marks_of

    def stopped(*given: object) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == moment - (moment > 2):  # two in the round, two of enhanced, two of fixed
            raise KeyboardInterrupt
        return own(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        for module in (distill, renders):
            patch.setattr(module, "marks_of", stopped)
        assert difix(*line, "--confidence", "-o", tmp_path / "run").exit_code == 130
    told(difix(*line, "--confidence", "-o", tmp_path / "run"))
    assert _pictures(tmp_path / "run") == _pictures(marked[0])


def test_the_report_shows_the_maps_and_how_much_is_invented(marked: tuple[Path, dict], tmp_path: Path) -> None:
    """Of a run that is done, whenever it is asked for."""
    folder, _ = marked
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    told(difix("eval", run, "--metrics", "psnr", "--json"))
    page, found = (run / "report.html").read_text(), json.loads((run / "eval.json").read_text())
    assert page.count('data-kind="map"') == 2 * 2 + 2 * 2  # enhanced and fixed; weights and marks of the round
    assert "What photos have seen" in page and "Views that round 2 trained on" in page
    assert page.count("seen by a photo that stands beside it") == 3  # the key of each part
    for variant in ("fixed", "enhanced"):
        rows = [shares(read_marks(run / "renders" / variant / f"{name}{CONFIDENCE}")) for name in (NEAR, FAR)]
        assert [found["marks"][variant][name] for name in (NEAR, FAR)] == [pytest.approx(row) for row in rows]
        mean = "".join(f"<td>{np.mean([row[key] for row in rows]):.1%}</td>" for key in rows[0])
        assert f"<tr><td>{variant}</td>{mean}</tr>" in page
        for name, row in zip((NEAR, FAR), rows, strict=True):
            assert f"<tr><td>{name}, {variant}</td>{''.join(f'<td>{row[key]:.1%}</td>' for key in row)}</tr>" in page
    assert "Invented by round" in page
    assert set(found["marks"]) == {"fixed", "enhanced"}  # renders are none of fixes
    # a picture that is called as a map is, and is none
    write_image(run / "renders" / "fixed" / f"{NEAR}{CONFIDENCE}", np.full((8, 8), 0.5))
    refused(difix("eval", run, "--metrics", "psnr"), f"{NEAR}{CONFIDENCE}", "red, green and blue")
    # without maps there is nothing of them; what the round trained on is there, and its weights
    for path in [p for p in run.rglob("*.png") if _is_map(p.relative_to(run).as_posix())]:
        path.unlink()
    told(difix("eval", run, "--metrics", "psnr", "--json"))
    page = (run / "report.html").read_text()
    assert "What photos have seen" not in page and page.count('data-kind="map"') == 2 and "Weights: " in page


def test_folders_of_fixes_have_their_maps_in_the_report(marked: tuple[Path, dict], tmp_path: Path) -> None:
    renders = marked[0] / "renders"
    told(difix("eval", renders / "enhanced", renders / "truth", "--metrics", "psnr", "-o", tmp_path, "--json"))
    found = json.loads((tmp_path / "eval.json").read_text())
    assert set(found["marks"]["images"]) == {NEAR, FAR} and found["images"] == 2
    assert (tmp_path / "report.html").read_text().count('data-kind="map"') == 2


def test_an_enhanced_run_has_maps_that_know_what_photos_taught(
    marked: tuple[Path, dict], fixer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(marked[0], run)
    line = ("enhance", run, "--fixer", fixer, "--confidence", "--json")
    told(difix(*line, "-o", tmp_path / "test"))
    near, far = (shares(read_marks(tmp_path / "test" / f"{name}{CONFIDENCE}")) for name in (NEAR, FAR))
    assert near["seen"] > far["seen"] + 0.2 and far["invented"] > 2 * near["invented"], (near, far)
    # the views, the fixer and its photos are those of the run's own fixes
    for name in (NEAR, FAR):
        np.testing.assert_allclose(
            read_marks(tmp_path / "test" / f"{name}{CONFIDENCE}"),
            read_marks(run / "renders" / "enhanced" / f"{name}{CONFIDENCE}"),
            atol=2 / 255,
        )
    # a map that is gone is made again as it was, with its frame; a path has maps, too
    held = _pictures(tmp_path / "test")
    (tmp_path / "test" / f"{FAR}{CONFIDENCE}").unlink()
    assert told(difix(*line, "-o", tmp_path / "test"))["results"]["kept"] == 1
    assert _pictures(tmp_path / "test") == held
    said = told(difix(*line, "--trajectory", "spiral:3"))["results"]
    frames = sorted(path.name for path in Path(said["output"]).glob("*.png"))
    assert frames == [f"frame_{i:05d}{end}" for i in (1, 2, 3) for end in (CONFIDENCE, ".png")]
    assert read_marks(Path(said["output"]) / f"frame_00001{CONFIDENCE}").shape == (36, 48, 3)
    # what a distilled model has learned from fixes would speak for them, where no photo does
    aside = (*line, "--trajectory", "shift:1")
    told(difix(*aside, "-o", tmp_path / "aside"))
    shutil.rmtree(run / "photos")
    told(difix(*aside, "-o", tmp_path / "own"))
    invented = [
        np.mean([shares(read_marks(path))["invented"] for path in (tmp_path / name).glob(f"*{CONFIDENCE}")])
        for name in ("aside", "own")
    ]
    assert invented[0] > invented[1] + 0.002


def test_films_show_how_far_their_pixels_are_believed(arc: Path, line: list[object], tmp_path: Path) -> None:
    films = ["distill", arc, "--prior", "video", *TOY, "--frames", 4, *line[line.index("--split") :][:2]]
    run = tmp_path / "run"
    told(difix(*films, "--further", 12, "--confidence", "-o", run))
    record = json.loads((run / "rounds" / "01" / "round.json").read_text())
    told(difix("eval", run, "--metrics", "psnr", "--json"))
    page, found = (run / "report.html").read_text(), json.loads((run / "eval.json").read_text())
    (proposals,) = found["proposals"].values()
    assert [one["name"] for one in proposals] == [view["target"] for view in record["views"]]
    assert np.mean([one["mean_weight"] for one in proposals]) == pytest.approx(1, abs=0.05)
    for one, view in zip(proposals, record["views"], strict=True):
        weight = read_image(run / "rounds" / view["files"]["confidence"]).mean()
        assert one["mean_weight"] == pytest.approx(view["terms"]["method"] * weight)
        assert one["shares"] == shares(read_marks(run / "rounds" / view["files"]["target.confidence"]))
        assert f"<tr><td>{one['name']}</td><td>{one['mean_weight']:.2f}</td>" in page
    assert page.count('data-kind="map"') == 2 * len(proposals) and "a photo counts once" in page
    assert re.search(r"</i>2</span>; (1\.0\d|0\.9\d) on average", page)


def test_priors_that_propose_no_fixes_have_no_maps(line: list[object], tmp_path: Path) -> None:
    for prior in ("super-resolution", "view-diffusion"):
        asked = ("distill", line[1], "--prior", prior, "--confidence", "-o", tmp_path / "run")
        refused(difix(*asked), "--confidence says nothing", prior)
    assert not (tmp_path / "run").exists()


def test_an_image_called_as_another_s_map_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.confidence.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"a\.jpg and a\.confidence\.jpg, whose name is that of the other's"):
        listed_images(tmp_path, tmp_path / "out")
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert len(listed_images(tmp_path, tmp_path / "out")) == 2
