"""Training: pairs, losses, synthetic pairs, the loop, resuming."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations, takewhile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from commands import IMPORT_PATH, difix, done, refused
from PIL import Image
from safetensors.torch import load_file
from small_fixers import smallest_fixer
from test_fixer_inference import raw_network
from torch.utils.data import DataLoader

from difixcli import interrupts
from difixcli.cli.finetuning import _training_news
from difixcli.errors import InputError
from difixcli.evaluation.perceptual import Lpips, lpips_available
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.runs import write_image
from difixcli.torchvision_cure import cure
from difixcli.training import TrainingOptions, finetune
from difixcli.training.augmentation import improved, misled
from difixcli.training.batches import Plan, TrainingBatches
from difixcli.training.fixer import _Training
from difixcli.training.losses import GRAM_WEIGHTS, FixerLoss, gram_distance
from difixcli.training.options import learning_rate, parsed_options, with_options
from difixcli.training.pair_lists import spread
from difixcli.training.pairs import PairStore, inspect_pairs, read_manifests
from difixcli.training.parts import AllViews, with_rank
from difixcli.training.streaming import Lane, StreamedBatches
from difixcli.training.synthetic import PhotoPairs, Sample, synthesise

FAST = {"batch": 2, "crop": 32, "window": 32, "checkpoint_every": 1000, "validate_every": 1000, "log_every": 1}


def texture(seed: int, height: int = 48, width: int = 56) -> np.ndarray:
    """(H, W, 3) uint8 with structure at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        grid = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        image += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return (image / 4).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.name


def blurred(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((width // 4, height // 4), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four training pairs and one test pair as curation writes them."""
    folder = tmp_path / "pairs"
    manifest: dict = {"train": {}, "test": {}}
    for i in range(5):
        photo = texture(i)
        visible = np.full((*photo.shape[:2], 1), 255, np.uint8)
        visible[:, :10] = 0
        aligned = np.concatenate([photo, visible], axis=2)
        manifest["test" if i == 4 else "train"][f"pair{i}"] = {
            "image": save(folder / f"render{i}.png", blurred(photo)),
            "target_image": save(folder / f"photo{i}.png", photo),
            "ref_image": save(folder / f"ref{i}.png", photo),
            "prompt": "remove degradation",
            "ref_images": [f"ref{i}.png"],
            "aligned_refs": [save(folder / f"aligned{i}.{v}.png", aligned) for v in range(2)],
            "opacity": save(folder / f"opacity{i}.png", np.full(photo.shape[:2], 250, np.uint8)),
        }
    (folder / "data.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixer that costs a tenth of the tiny one, for what holds of any."""
    return smallest_fixer().save_pretrained(tmp_path_factory.mktemp("small"))


class Killed(Exception):
    """What a kill is to a training in this process."""


def terminated_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A `progress` in which this process hears SIGTERM at a step; the memory of it is gone after the test."""
    for name in ("_asked", "_raised"):
        monkeypatch.setattr(interrupts, name, getattr(interrupts, name))

    def progress(done: int) -> None:
        if done == step:
            interrupts._hear(signal.SIGTERM)

    return progress


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if r["event"] == "step"]


def test_loss_falls_and_the_result_loads(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = {**FAST, "perceptual_weight": 0.0, "learning_rate": 2e-3, "warm_up": 5, "strong_augmentation": False}
    results = finetune([pairs], "tiny", output, iterations=60, ema=0.9, **options)
    curve = losses(output)
    assert np.mean(curve[-15:]) < 0.8 * np.mean(curve[:15])
    validation = results["validation"]
    assert validation["fixed"]["psnr"] > validation["identity"]["psnr"]
    assert set(validation) == {"identity", "unsharp", "fixed"}
    assert results["pairs"] == {"train": 4, "test": 1, "dropped": 0, "photos": 0}
    fixer = Fixer.from_pretrained(output)
    fixed = fixer(torch.rand(1, 3, 40, 40), torch.rand(1, 1, 3, 40, 40))
    assert fixed.shape == (1, 3, 40, 40)
    grid = np.asarray(Image.open(output / "validation" / "0000060.png"))
    assert grid.shape == (48, 56 * 5, 3)  # render, fixed, truth and two references
    assert list((output / "tensorboard").iterdir())


def test_resuming_is_exact(pairs: Path, tmp_path: Path, small: Path) -> None:
    options = {**FAST, "iterations": 6, "checkpoint_every": 3, "validate_every": 3, "perceptual_weight": 0.0}
    finetune([pairs], small, tmp_path / "whole", **options)
    killed = tmp_path / "killed"

    def kill(step: int) -> None:
        if step == 5:  # the checkpoint is from step 3: two steps are lost
            raise Killed

    with pytest.raises(Killed):
        finetune([pairs], small, killed, progress=kill, **options)
    finetune([pairs], small, killed, **options)
    assert losses(killed) == losses(tmp_path / "whole")
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_signal_to_every_process_saves_first(pairs: Path, tmp_path: Path) -> None:
    """As SLURM sends it: to the training and to the processes that read for it. Nothing is lost."""
    options = {**FAST, "iterations": 6, "workers": 1, "perceptual_weight": 0.0}
    program = (
        "import json, sys; from pathlib import Path; from difixcli import interrupts\n"
        "import torch; torch.set_num_threads(int(sys.argv[4]))\n"  # sums depend on it
        "from difixcli.training import finetune\n"
        "def tell(step):\n"
        "    print(step, flush=True)\n"
        "    sys.stdin.readline()\n"
        "if __name__ == '__main__':\n"
        "    interrupts.listen()\n"
        "    try:\n"
        "        finetune([Path(sys.argv[1])], 'tiny', Path(sys.argv[2]), progress=tell, **json.loads(sys.argv[3]))\n"
        "    except interrupts.Terminated:\n"
        "        sys.exit(143)\n"
    )
    (tmp_path / "program.py").write_text(program)
    line = [sys.executable, tmp_path / "program.py", pairs, tmp_path / "asked", json.dumps(options)]
    line.append(torch.get_num_threads())
    process = subprocess.Popen(
        [*map(str, line)],
        env={**os.environ, "PYTHONPATH": IMPORT_PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    for step in (1, 2, 3):
        assert process.stdout.readline() == f"{step}\n"
        if step == 3:
            os.killpg(process.pid, signal.SIGUSR1)
            os.killpg(process.pid, signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.communicate(timeout=300)[0] == "4\n" and process.returncode == 143
    assert torch.load(tmp_path / "asked" / "checkpoints" / "last.pt", weights_only=True)["step"] == 4
    finetune([pairs], "tiny", tmp_path / "asked", **options)
    finetune([pairs], "tiny", tmp_path / "whole", **options | {"workers": 0})
    assert losses(tmp_path / "asked") == losses(tmp_path / "whole")


def test_what_fills_the_unseen_is_the_same_when_training_goes_on(pairs: Path, tmp_path: Path) -> None:
    """Noise belongs to a sample, not to when it is drawn or in which batch; validation leaves no encodings behind."""
    base = Fixer(raw_network(fill_unseen=True)).save_pretrained(tmp_path / "base")
    for opacity in pairs.glob("opacity*.png"):
        Image.fromarray(np.full((48, 56), 100, np.uint8)).save(opacity)
    common = {**FAST, "iterations": 4, "checkpoint_every": 2, "perceptual_weight": 0.0, "gram_weight": 0.0}
    options = {**common, "learning_rate": 1e-3, "warm_up": 1}
    finetune([pairs], base, tmp_path / "whole", **options)

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune([pairs], base, tmp_path / "killed", progress=kill, **options)
    torch.rand(5)  # whatever else the process does
    finetune([pairs], base, tmp_path / "killed", **options)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    finetune([pairs], base, tmp_path / "rounds", **options | {"batch": 1, "accumulate": 2})
    np.testing.assert_allclose(losses(tmp_path / "rounds"), losses(tmp_path / "whole"), rtol=1e-4)

    chosen = with_options(TrainingOptions.for_published("cpu"), {**common, "iterations": 1}, "cpu")
    training = _Training(Fixer.from_pretrained(base), chosen, tmp_path / "one", "cpu", None)
    training.load_data([str(pairs)], None, False, str(base))
    training.run(None)
    training.journal.close()
    assert training.best.found is not None and not training.fixer._held


def test_a_pair_that_breaks_on_the_way_changes_nothing_else(pairs: Path, tmp_path: Path, small: Path) -> None:
    """Killed after a pair broke (even one lost with its header), training goes on as one that was not killed."""
    options = {
        **FAST,
        "iterations": 8,
        "checkpoint_every": 2,
        "perceptual_weight": 0.0,
        "validation_pairs": 1,
        "cache_mib": 0,
    }
    first = read_manifests([pairs]).train

    def train(name: str, stop: int | None) -> dict:
        folder = tmp_path / name / "pairs"
        shutil.copytree(pairs, folder)
        broken = folder / Path(str(first[1].render)).name

        def watch(step: int) -> None:
            if step == 2:
                broken.write_bytes(b"")
            if step == stop:
                raise Killed

        if stop is not None:
            with pytest.raises(Killed):
                finetune([folder], small, tmp_path / name / "out", progress=watch, **options)
            stop = None
        return finetune([folder], small, tmp_path / name / "out", progress=watch, **options)

    whole, killed = train("whole", None), train("killed", 5)
    assert losses(tmp_path / "whole" / "out") == losses(tmp_path / "killed" / "out")
    assert list(whole["skipped"]) == list(killed["skipped"]) == ["pair1"]
    assert whole["pairs"] == killed["pairs"] and whole["pairs"]["dropped"] == 0


def test_other_options_do_not_resume(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0}
    finetune([pairs], "tiny", tmp_path / "out", iterations=1, **options)
    with pytest.raises(InputError, match="other pairs, base or options"):
        finetune([pairs], "tiny", tmp_path / "out", iterations=2, **options)


def test_a_damaged_checkpoint_is_named(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 1}
    finetune([pairs], "tiny", tmp_path / "out", **options)
    (tmp_path / "out" / "checkpoints" / "last.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"last\.pt is damaged"):
        finetune([pairs], "tiny", tmp_path / "out", **options)


def test_photos_are_held_no_larger_than_they_are_used(tmp_path: Path) -> None:
    Image.new("RGB", (1500, 1100), "teal").save(tmp_path / "large.jpg")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "small.jpg")
    photos = PhotoPairs(tmp_path)
    assert [photos.photo(path).shape for path in (*photos.train, *photos.test)] == [(751, 1024, 3), (60, 90, 3)]


def test_what_is_validated_on_is_spread_over_all() -> None:
    for most in (1, 5, 12, 23, 40):
        chosen = spread(range(23), most)
        assert len(chosen) == min(most, 23) and sorted(set(chosen)) == chosen
        apart = np.diff([*chosen, 23])
        assert chosen[0] == 0 and apart.max() - apart.min() <= 1


def test_one_of_few_photos_is_never_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", texture(i, 64, 80))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    photos = PhotoPairs(tmp_path)
    assert [[path.name for path in part] for part in (photos.train, photos.test)] == [["0.png", "1.png"], ["2.png"]]
    assert list(photos.dropped) == [str(tmp_path / "3.png")]
    # which is said where there is only one
    for i in (1, 2, 3):
        (tmp_path / f"{i}.png").unlink()
    options = {**FAST, "perceptual_weight": 0.0, "validation_pairs": 1, "iterations": 1}
    records: list = []
    results = finetune([], "tiny", tmp_path / "out", photos=tmp_path, report=records.append, **options)
    assert results["pairs"]["photos"] == 1 and results["validation"]["fixed"]
    start = next(record for record in records if record["event"] == "start")
    for unseen in (False, True):
        _training_news({**start, "unseen": unseen} if unseen else start)
        assert ("validated on alike" in " ".join(capsys.readouterr().err.split())) is not unseen


def test_collapse_stops_training(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "signs_every": 2}
    with pytest.raises(InputError, match=r"collapsed at step|not a number"):
        finetune([pairs], "tiny", tmp_path / "out", iterations=40, learning_rate=30.0, warm_up=1, **options)


def test_release_manifest_with_absolute_and_relative_paths(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "release"
    release.mkdir()
    entries = {
        # the release's own folder, an absolute path, and a path from where the program is started
        "a": {"image": "../pairs/render0.png", "target_image": "../pairs/photo0.png"},
        "b": {
            "image": str(pairs / "render1.png"),
            "target_image": str(pairs / "photo1.png"),
            "ref_image": str(pairs / "ref1.png"),
            "prompt": "remove degradation",
        },
        "c": {"image": "pairs/render2.png", "target_image": "pairs/photo2.png", "ref_image": "pairs/ref2.png"},
    }
    (release / "data.json").write_text(json.dumps({"train": entries, "test": {}}))
    monkeypatch.chdir(tmp_path)
    manifest = read_manifests([release])
    assert [p.id for p in manifest.train] == ["a", "b", "c"] and not manifest.dropped
    raw = PairStore(manifest.train, "raw", views=1)
    assert [len(pair.references) for pair in (raw[0], raw[1], raw[2])] == [0, 1, 1]
    np.testing.assert_array_equal(raw[1].references[0], texture(1))
    aligned = PairStore(manifest.train, "aligned", views=3)
    assert aligned[1].references.shape == (1, 48, 56, 3) and aligned[1].visibility.mean() > 100
    results = finetune([release], "tiny", tmp_path / "out", iterations=2, **{**FAST, "perceptual_weight": 0.0})
    assert results["validation"] is None and results["best_step"] == 2
    assert Fixer.from_pretrained(tmp_path / "out").config.references == "aligned"


def test_bad_pairs_are_dropped_or_skipped_counted_and_explained(pairs: Path, tmp_path: Path) -> None:
    manifest = json.loads((pairs / "data.json").read_text())
    (pairs / "render0.png").write_bytes((pairs / "render0.png").read_bytes()[:200])  # its header is whole
    (pairs / "photo1.png").unlink()
    save(pairs / "photo2.png", texture(2, 30, 90))
    manifest["train"]["odd"] = {"image": None}
    (pairs / "data.json").write_text(json.dumps(manifest))
    results = finetune([pairs], "tiny", tmp_path / "out", iterations=2, **{**FAST, "perceptual_weight": 0.0})
    assert results["pairs"]["train"] == 2 and results["pairs"]["dropped"] == 3
    reasons = " ".join(results["dropped"].values())
    assert "photo1.png is missing" in reasons and "another shape" in reasons and "no file name" in reasons
    assert list(results["skipped"]) == ["pair0"] and "render0.png cannot be read" in results["skipped"]["pair0"]
    assert '"event": "skipped"' in (tmp_path / "out" / "log.jsonl").read_text()


def test_pixels_that_are_no_numbers_are_refused(pairs: Path, tmp_path: Path) -> None:
    pixels = np.full((48, 56), 0.5, np.float32)
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(tmp_path / "render.tif")
    files = [replace(read_manifests([pairs]).train[0], render=str(tmp_path / "render.tif"))]
    with pytest.raises(ValueError, match="not numbers"):
        _ = PairStore(files, "aligned", 1)[0]
    batches = TrainingBatches(PairStore(files, "aligned", 1), None, Plan(steps=1, batch=1, crop=32, views=1))
    assert batches[0].batch is None and "not numbers" in batches[0].error


@pytest.mark.parametrize("content", ["{", "[]", '{"pairs": {}}'])
def test_no_manifest(content: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.json"):
        read_manifests([tmp_path])


def test_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"train": {}}')
    with pytest.raises(InputError, match="nothing to train on"):
        finetune([tmp_path], "tiny", tmp_path / "out", iterations=1, perceptual_weight=0.0)
    with pytest.raises(InputError, match=r"learning_speed; did you mean learning_rate"):
        finetune([tmp_path], "tiny", tmp_path / "out", learning_speed=1)


def test_a_training_refused_before_its_first_step_leaves_nothing_that_asks_for_force(tmp_path: Path) -> None:
    """Whether it is told when the pairs are looked at or when the first of them is read whole."""
    line = ["finetune", tmp_path, "--base", "tiny", "--device", "cpu", "-o", tmp_path / "made" / "out"]
    line += ["--crop", "16", "--perceptual-weight", "0", "--set", "window=16"]
    pair = {"image": "render.png", "target_image": "photo.png"}
    (tmp_path / "data.json").write_text(json.dumps({"train": {"one": pair}, "test": {}}))
    refused(difix(*line), "1 pair cannot be used, as one: ", "render.png is missing")
    assert not (tmp_path / "made").exists()
    for name in ("render.png", "photo.png"):
        write_image(tmp_path / name, np.random.default_rng(0).random((32, 32, 3)))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    refused(difix(*line), "One pair after another cannot be read")
    assert not (tmp_path / "made").exists()
    refused(difix(*line[:2], "--task", "video", *line[4:8]), "no clip")
    assert not (tmp_path / "made").exists()


def test_crops_flips_and_tones_keep_a_pair_together(pairs: Path) -> None:
    store = PairStore(read_manifests([pairs]).train, "aligned", views=2)
    plan = Plan(steps=40, batch=2, crop=24, views=2, seed=3)
    batches = TrainingBatches(store, None, plan)
    counts = set()
    for step in range(40):
        batch = batches[step].batch
        assert batch.images.shape == batch.targets.shape == (2, 3, 24, 24)
        counts.add(0 if batch.references is None else batch.references.shape[1])
        if batch.references is not None and batch.visibility is not None:
            # the references are the photos themselves, so they must coincide with the target everywhere
            torch.testing.assert_close(batch.references, batch.targets[:, None].expand_as(batch.references))
            assert batch.visibility.shape == (2, batch.references.shape[1], 1, 24, 24)
    assert counts == {0, 1, 2}
    again = TrainingBatches(store, None, plan)[7].batch
    assert torch.equal(again.images, batches[7].batch.images)
    seen = {batches.index(position) for position in range(4)}
    assert seen == {0, 1, 2, 3}  # an epoch goes through all pairs


def test_references_of_another_tone_show_the_same_things(pairs: Path) -> None:
    store = PairStore(read_manifests([pairs]).train, "aligned", views=2)
    plain = TrainingBatches(store, None, Plan(steps=40, batch=2, crop=24, views=2, drop_references=0))
    toned = TrainingBatches(
        store, None, Plan(steps=40, batch=2, crop=24, views=2, drop_references=0, reference_tone=0.3)
    )
    changed = 0
    for step in range(20):
        one, other = plain[step].batch, toned[step].batch
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        for i in range(2):
            if torch.equal(one.references[i], other.references[i]):
                continue
            changed += 1
            reference, target = other.references[i, 0].flatten(1), one.targets[i].flatten(1)
            for channel in range(3):  # a tone curve rises: brighter stays brighter
                order = target[channel].argsort()
                assert bool((reference[channel][order].diff() >= -1e-6).all())
    assert 8 <= changed <= 32  # of 40 samples, half


def numbered_sample(side: int = 20, views: int = 2) -> Sample:
    """A sample of noise, whose references' red and green say which pixel they are, as does their visibility."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    view = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    references = np.stack([view + np.float32([0, 0, v / views]) for v in range(views)])
    visibility = (references[..., 0] + references[..., 1] / side).astype(np.float32)
    images = rng.random((2, side, side, 3), np.float32)
    return Sample(images[0], images[1], references, visibility, rng.random((side, side), np.float32))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_improved_renders_lie_between_render_and_photo(share: float) -> None:
    """In half of them nothing is left of what is wrong, in the others at most 60 %, the same part everywhere."""
    sample = numbered_sample()
    wrong = sample.render - sample.target
    left = []
    for seed in range(400):
        found = improved(sample, share, np.random.default_rng(seed))
        part = float((found.render - sample.target).ravel() @ wrong.ravel() / (wrong.ravel() @ wrong.ravel()))
        np.testing.assert_allclose(found.render, sample.target + part * wrong, atol=1e-6)
        assert all(a is b for a, b in zip(found[1:], sample[1:], strict=True)) and found.render.dtype == np.float32
        if found.render is not sample.render:
            left.append(part)
    assert abs(len(left) / 400 - share) <= 0.06
    if left:
        partly = [part for part in left if part > 1e-6]
        assert max(left) <= 0.6 and 0.35 < len(partly) / len(left) < 0.65 and 0.2 < np.mean(partly) < 0.4


def test_misleading_references_are_another_place_of_the_same_photos() -> None:
    """They are turned around and moved by at least a quarter, all alike, and what they claim to see with them."""
    sample, side, others = numbered_sample(), 20, 0
    for seed in range(60):
        found = misled(sample, 1.0, np.random.default_rng(seed))
        assert found.render is sample.render and found.target is sample.target and found.opacity is sample.opacity
        before, after = (np.sort(x.references.reshape(-1, 3), axis=None) for x in (sample, found))
        np.testing.assert_array_equal(before, after)
        # visibility says where every pixel comes from
        row, column = np.divmod(np.rint(found.visibility * side * side).astype(int), side)
        shift = [(place[:, 0, 0] + 1) % side for place in (row, column)]
        assert (np.concatenate(shift) >= side // 4).all() and (np.concatenate(shift) < side - side // 4).all()
        for place, axis in ((row, 1), (column, 2)):  # to the left of each pixel stands its right neighbour
            assert (np.diff(place, axis=axis) % side == side - 1).all()
            assert (place == place[:1]).all()
        source = sample.references[np.arange(2)[:, None, None], row, column]
        orders = [o for o in permutations(range(3)) if np.array_equal(source[..., o], found.references)]
        assert len(orders) == 1  # the same change of colours everywhere
        others += orders[0] != (0, 1, 2)
    assert 15 <= others <= 35  # of half of the samples one in six orders is the old one


def test_few_samples_are_misled_and_none_without_references() -> None:
    sample = numbered_sample()
    changed = sum(misled(sample, 0.2, np.random.default_rng(seed)) is not sample for seed in range(400))
    assert 55 <= changed <= 105
    alone = sample._replace(references=sample.references[:0], visibility=sample.visibility[:0])
    assert misled(alone, 1.0, np.random.default_rng(0)) is alone


def test_what_a_second_pass_changes_is_a_term_of_every_fourth_step(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 9, "learning_rate": 0.0, "ema": 0.0, "signs_every": 1000}
    for weight in (0.0, 2.0):
        finetune([pairs], "tiny", tmp_path / f"{weight}", idempotence_weight=weight, **options)
    records = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("0.0", "2.0")
    ]
    without, with_it = ([r for r in log if r["event"] == "step"] for log in records)
    assert [r["step"] for r in with_it if "again" in r] == [0, 4, 8] and not any("again" in r for r in without)
    for one, other in zip(without, with_it, strict=True):  # the weights stay what they are
        assert other["loss"] == pytest.approx(one["loss"] + other.get("again", 0), rel=1e-5)

    chosen = with_options(TrainingOptions.for_small(), {**options, "idempotence_weight": 2.0}, "cpu")
    training = _Training(new_small_fixer("tiny"), chosen, tmp_path / "one", "cpu", None)
    training.load_data([str(pairs)], None, False, "tiny")
    batch = next(iter(training.loader)).batch
    beside = (batch.references, batch.opacity, batch.visibility)
    network = new_small_fixer("tiny").network.train()
    training.network.train()
    output = network(batch.images, *beside)
    for factor in (1, 3):  # of three times the output some is beyond [0, 1]
        first = (factor * output).detach().clamp(0, 1)
        changed = training._changed_again(factor * output, beside)
        torch.testing.assert_close(changed, (network(first, *beside) - first).abs().mean())
        assert changed > 1e-3
        if factor == 1:
            assert with_it[0]["again"] == pytest.approx(2 * changed.item(), rel=1e-4)
    training.journal.close()
    # the second pass learns to keep the first one's output; the first does not learn to be kept
    assert torch.autograd.grad(changed, output, retain_graph=True, allow_unused=True)[0] is None
    changed.backward()
    assert all(bool(w.grad.isfinite().all()) for w in training.weights if w.grad is not None)
    assert any(bool(w.grad.any()) for w in training.weights if w.grad is not None)


def test_small_images_make_small_crops_and_few_smaller_ones_are_left_out(pairs: Path, tmp_path: Path) -> None:
    files = read_manifests([pairs]).train
    assert inspect_pairs(files, 512, 16) == ({}, 48, 48)
    assert inspect_pairs(files, 32, 16).crop == 32
    save(tmp_path / "small.png", texture(0, 20, 24))
    small = str(tmp_path / "small.png")
    mixed = [replace(files[0], render=small, target=small), *list(files) * 3]
    dropped, crop, _ = inspect_pairs(mixed, 512, 16)
    assert crop == 48 and list(dropped) == [0] and "smaller than the crops of 48" in dropped[0]


def test_pairs_beyond_the_memory_are_read_again(pairs: Path) -> None:
    manifest = read_manifests([pairs])
    kept = PairStore(manifest.train, "aligned", views=2)
    read = PairStore(manifest.train, "aligned", views=2, cache_mib=0)
    for i in range(len(kept)):
        for one, again, other in zip(kept[i], kept[i], read[i], strict=True):
            assert one is again
            np.testing.assert_array_equal(one, other)
    assert not read._kept


def test_synthetic_pairs() -> None:
    photo, other = texture(1, 70, 90), texture(2, 70, 90)
    samples = [synthesise(photo, other, 48, 3, np.random.default_rng(seed)) for seed in range(20)]
    for sample in samples:
        assert sample.render.shape == sample.target.shape == (48, 48, 3)
        assert sample.references.shape == (3, 48, 48, 3) and sample.visibility.shape == (3, 48, 48)
        assert sample.correspondence is None
        for part in sample[:5]:
            assert part.dtype == np.float32 and part.min() >= 0 and part.max() <= 1
        assert not sample.references[sample.visibility == 0].any()
    error = [np.sqrt(np.mean((s.render - s.target) ** 2)) for s in samples]
    assert 0.02 < np.mean(error) < 0.3 and np.std(error) > 0.01
    same = synthesise(photo, other, 48, 3, np.random.default_rng(4))
    np.testing.assert_array_equal(same.render, samples[4].render)


def test_photos_alone_train_and_validate(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", texture(i, 64, 80))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    options = {**FAST, "perceptual_weight": 0.0, "validation_pairs": 2}
    results = finetune([], "tiny", tmp_path / "out", photos=tmp_path / "photos", iterations=2, **options)
    assert results["pairs"] == {"train": 0, "test": 0, "dropped": 1, "photos": 2}
    assert results["validation"]["fixed"]["psnr"] > 5
    with pytest.raises(InputError, match="No readable photo"):
        PhotoPairs(tmp_path / "out" / "checkpoints")


def test_published_layout_trains_all_but_its_encoder(shared: Path, pairs: Path, tmp_path: Path) -> None:
    base = shared / "golden" / "difix_ref"
    before = {n: p.clone() for n, p in Fixer.from_pretrained(base).network.named_parameters()}
    options = {**FAST, "perceptual_weight": 0.0, "gram_weight": 0.0, "learning_rate": 1e-3, "warm_up": 1}
    finetune([pairs], base, tmp_path / "out", iterations=2, **options)
    after = dict(Fixer.from_pretrained(tmp_path / "out").network.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(n.startswith("unet.") for n in moved) and any("skip_conv" in n for n in moved)
    assert any("lora_" in n for n in moved)
    assert not any(n.startswith("vae.encoder") for n in moved)
    assert not any("base_layer" in n and "skip_conv" not in n for n in moved)
    with pytest.raises(InputError, match="aligned references"):
        finetune([pairs], base, tmp_path / "other", photos=tmp_path)


def test_gram_distance_against_its_formula_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 8, 8), (6, 4, 4), (8, 2, 2), (8, 2, 1), (8, 1, 1)]
    one = [torch.rand(2, *s, generator=generator) for s in sizes]
    other = [torch.rand(2, *s, generator=generator) for s in sizes]
    expected = np.zeros(2)
    for weight, a, b in zip((1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5), one, other, strict=True):
        c, h, w = a.shape[1:]
        for i in range(2):
            f, g = (x[i].double().numpy().reshape(c, h * w) for x in (a, b))
            expected[i] += weight * np.mean((f @ f.T - g @ g.T) ** 2) / (c * h * w)
    np.testing.assert_allclose(gram_distance(one, other).numpy(), expected, rtol=1e-5)
    assert len(GRAM_WEIGHTS) == 5
    assert float(gram_distance(one, one).abs().max()) == 0


def test_loss_terms() -> None:
    output, target = torch.rand(1, 3, 40, 40, requires_grad=True), torch.rand(1, 3, 40, 40)
    loss = FixerLoss("l2", "st-lpips-alex", 1.0, 0.5, gram_start=10, window=32)
    total, parts = loss(output, target, step=9)
    assert set(parts) == {"pixel", "perceptual"}
    torch.testing.assert_close(parts["pixel"], (output - target).square().mean().detach())
    torch.testing.assert_close(total.detach(), sum(parts.values()))
    total, parts = loss(output, target, step=10)
    assert set(parts) == {"pixel", "perceptual", "gram"} and parts["gram"] > 0
    total.backward()
    assert output.grad is not None and bool(output.grad.isfinite().all())
    assert not list(loss.parameters())
    with pytest.raises(InputError, match="pixel loss"):
        FixerLoss("l3")  # type: ignore[arg-type]


def test_learning_rate_schedule() -> None:
    options = TrainingOptions(iterations=100, warm_up=10, learning_rate=1.0, schedule="cosine")
    assert learning_rate(0, options) == pytest.approx(0.1)
    assert learning_rate(10, options) == pytest.approx(1.0)
    assert learning_rate(55, options) == pytest.approx(0.51)
    assert learning_rate(100, options) == pytest.approx(0.02)


def test_a_manifest_may_have_its_lines_anywhere(pairs: Path, tmp_path: Path) -> None:
    """One that begins and ends as ours do, a pair a line, need not be so in between."""
    held = json.loads((pairs / "data.json").read_text())
    lines = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in held["train"].items()]
    last = json.dumps(held["test"])[1:-1]
    wanted = read_manifests([pairs])
    for name, middle in {
        "ours": ",\n".join(lines),
        "blank": ",\n\n".join(lines),
        "two": ",\n".join([lines[0], ", ".join(lines[1:3]), *lines[3:]]),
        "broken": ",\n".join([*lines[:2], *(line.replace(", ", ",\n ") for line in lines[2:])]),
    }.items():
        file = pairs / f"{name}.json"
        file.write_text(f'{{"train": {{\n{middle}\n}}, "test": {{\n{last}\n}}}}\n')
        assert json.loads(file.read_text()) == held
        found = read_manifests([file])
        assert [pair.id for pair in found.train] == [pair.id for pair in wanted.train]
        assert [pair.render for pair in found.test] == [pair.render for pair in wanted.test]
        assert found.fingerprint == wanted.fingerprint and not found.dropped
    file.write_text(file.read_text()[:-40] + "}}\n")
    with pytest.raises(InputError, match="not valid JSON"):
        read_manifests([file])


def test_what_was_validated_stays_in_the_log(pairs: Path, tmp_path: Path, small: Path) -> None:
    """Of the step from which a training goes on, too: it is not validated again."""
    options = {**FAST, "iterations": 4, "checkpoint_every": 2, "validate_every": 2, "perceptual_weight": 0.0}

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune([pairs], small, tmp_path / "out", progress=kill, **options)
    finetune([pairs], small, tmp_path / "out", **options)
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["event"] == "validation"] == [2, 4]


def test_log_survives_a_line_cut_short(pairs: Path, tmp_path: Path, small: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 2}
    finetune([pairs], small, tmp_path / "out", **options)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy)
    with (copy / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    finetune([pairs], small, copy, **options)
    assert losses(copy) == losses(tmp_path / "out")


@pytest.fixture
def tars(pairs: Path, tmp_path: Path) -> Path:
    """Three tars with the four training pairs each, under other names, and one with a test pair."""
    entries = json.loads((pairs / "data.json").read_text())
    from difixcli.curation.tars import write_tar

    for i in range(3):
        (tmp_path / "tars" / "train").mkdir(parents=True, exist_ok=True)
        renamed = {f"{key}-{i}": entry for key, entry in entries["train"].items()}
        write_tar(tmp_path / "tars" / "train" / f"{i}.tar", pairs, renamed)
    (tmp_path / "tars" / "test").mkdir()
    write_tar(tmp_path / "tars" / "test" / "t.tar", pairs, entries["test"])
    return tmp_path / "tars"


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5])
def test_lanes_share_an_epoch_without_overlap(tars: Path, lanes: int) -> None:
    names = sorted(str(path) for path in (tars / "train").glob("*.tar"))
    every = []
    for number in range(lanes):
        for sample, place in Lane(names, number, lanes, seed=1):
            if place[0]:
                break
            every.append(sample["__key__"])
    assert sorted(every) == sorted(f"pair{i}-{tar}" for i in range(4) for tar in range(3))
    stream = [next(iter(Lane(names, 0, lanes, seed=1, place=(1, n))))[0]["__key__"] for n in range(2)]
    through = [sample["__key__"] for sample, place in _first(Lane(names, 0, lanes, seed=1), 2, epoch=1)]
    assert stream == through  # going on from a place is going on as if nothing had happened


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_stream_shows_no_pair_twice_in_an_epoch(pairs: Path, tmp_path: Path, processes: int) -> None:
    """Whatever the number of processes, of tars and of what they hold, in every epoch; the lanes are the samples'."""
    from difixcli.curation.tars import write_tar

    entries = json.loads((pairs / "data.json").read_text())["train"]
    names, keys = [], []
    for number, count in enumerate((1, 4, 2, 3, 4)):  # uneven
        held = {f"{key}-{number}": entry for key, entry in list(entries.items())[:count]}
        write_tar(tmp_path / f"{number}.tar", pairs, held)
        names.append(str(tmp_path / f"{number}.tar"))
        keys += list(held)
    seen: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for rank in range(processes):
        plan = Plan(steps=1, batch=4 // processes, crop=32, views=1, rank=rank, ranks=processes)
        for number in plan.positions(0):
            for sample, (epoch, _) in Lane(names, number, plan.samples, plan.seed):
                if epoch not in seen:
                    break
                seen[epoch].append(sample["__key__"])
    assert all(sorted(found) == sorted(keys) for found in seen.values())


def _first(lane: Lane, count: int, epoch: int) -> list:
    found = []
    for sample, place in lane:
        if place[0] == epoch:
            found.append((sample, place))
        if len(found) == count:
            return found
    return found


def test_streamed_tars_resume_exactly_and_skip_what_is_damaged(tars: Path, tmp_path: Path, small: Path) -> None:
    whole_tar = (tars / "train" / "1.tar").read_bytes()
    (tars / "train" / "1.tar").write_bytes(whole_tar[: len(whole_tar) // 2])
    options = {**FAST, "iterations": 7, "checkpoint_every": 3, "perceptual_weight": 0.0}
    results = finetune([tars], small, tmp_path / "whole", stream=True, **options)
    assert results["pairs"] == {"train": 0, "test": 1, "dropped": 0, "photos": 0, "tars": 3}
    assert any(name.endswith("1.tar") for name in results["skipped"])

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        finetune([tars], small, tmp_path / "killed", stream=True, progress=kill, **options)
    # another division into batches, and threads that decode ahead, are the same training
    again = {**options, "batch": 1, "accumulate": 2, "workers": 2}
    finetune([tars], small, tmp_path / "killed", stream=True, **again)
    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=1e-4)
    assert losses(tmp_path / "killed")[:3] == losses(tmp_path / "whole")[:3]


@pytest.mark.parametrize(("count", "lanes"), [(1, 8), (2, 7), (3, 16)])
def test_fewer_samples_than_lanes_are_enough(tars: Path, pairs: Path, count: int, lanes: int, tmp_path: Path) -> None:
    """No lane starves, and all samples come equally often in as many epochs as there are lanes at a tar."""
    from difixcli.curation.tars import write_tar

    entries = json.loads((pairs / "data.json").read_text())["train"]
    few = [tmp_path / f"few{i}.tar" for i in range(2)]
    write_tar(few[0], pairs, dict(list(entries.items())[:count]))
    assert all(next(iter(Lane([str(few[0])], number, lanes, seed=1))) for number in range(lanes))
    seen = [
        sample["__key__"]
        for number in range(lanes)
        for sample, place in _until(Lane([str(few[0])], number, lanes, seed=1), epoch=lanes)
    ]
    assert sorted(seen) == sorted(list(entries)[:count] * lanes)
    few[1].write_bytes(b"no tar at all")  # beside a damaged one too
    lane = Lane([str(path) for path in few], lanes - 1, lanes, seed=1)
    assert next(iter(lane))[0]["__key__"] in entries


def _until(lane: Lane, epoch: int) -> Iterator[tuple[dict, tuple[int, int]]]:
    return takewhile(lambda one: one[1][0] < epoch, lane)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_that_stream_see_every_sample_once_an_epoch(tmp_path: Path, workers: int) -> None:
    """Two processes with a batch of two, each with a worker's process and threads of its own, or without."""
    from difixcli.curation.tars import write_tar

    names, shades = [], {}
    for number in range(4):
        tar = tmp_path / f"{number}.tar"
        made = tmp_path / "shades" / str(number)
        entries = {}
        for i in range(4):
            shade = 15 * (4 * number + i) + 10
            shades[shade] = f"{number}-{i}"
            file = save(made / f"{i}.png", np.full((32, 32, 3), shade, np.uint8))
            entries[f"{number}-{i}"] = {"image": file, "target_image": file, "ref_images": [], "aligned_refs": []}
        write_tar(tar, made, entries)
        names.append(str(tar))
    seen = []
    for rank in range(2):
        plan = Plan(steps=4, batch=2, crop=32, views=1, rank=rank, ranks=2, strong=False)
        drawn = StreamedBatches(names, None, plan, "raw", threads=workers)
        for draw in DataLoader(drawn, batch_size=None, num_workers=min(workers, 1)):
            assert not draw.error and not draw.skipped
            seen += [shades[round(255 * float(image.mean()))] for image in draw.batch.unit().images]
    assert sorted(seen) == sorted(shades.values())  # 4 steps of 2 x 2 samples are the epoch


def test_streams_that_cannot_be(tars: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tars to stream"):
        finetune([pairs], "tiny", tmp_path / "out", stream=True)
    with pytest.raises(InputError, match="cannot be mixed"):
        finetune([pairs, tars], "tiny", tmp_path / "out", stream=True)
    with pytest.raises(InputError, match=r"no tar .*gone\.tar"):
        finetune([str(tars / "gone.tar")], "tiny", tmp_path / "out", stream=True)
    for tar in (tars / "train").glob("*.tar"):
        tar.write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"stopped at step 0 .* No pair can be read from the tars"):
        finetune([tars], "tiny", tmp_path / "out2", stream=True, **{**FAST, "perceptual_weight": 0.0})


def test_accumulation_checkpointing_and_workers_give_the_same_training(
    pairs: Path, tmp_path: Path, small: Path
) -> None:
    options = {**FAST, "iterations": 3, "perceptual_weight": 0.1, "batch": 4}
    finetune([pairs], small, tmp_path / "plain", **options)
    others = {
        "rounds": {"batch": 2, "accumulate": 2},
        "recomputed": {"gradient_checkpointing": True},
        "workers": {"workers": 2},
    }
    for name, change in others.items():
        finetune([pairs], small, tmp_path / name, **options | change)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "plain"), rtol=1e-4)
        assert Fixer.from_pretrained(tmp_path / name).config == Fixer.from_pretrained(tmp_path / "plain").config


@pytest.mark.parametrize("parts", ["unet", "decoder", "skips"])
def test_only_the_chosen_parts_train(pairs: Path, tmp_path: Path, parts: str) -> None:
    options = {**FAST, "iterations": 2, "perceptual_weight": 0.0, "warm_up": 1}
    finetune([pairs], "tiny", tmp_path / "base", **{**options, "iterations": 1, "learning_rate": 0.0})
    finetune([pairs], tmp_path / "base", tmp_path / "out", train=parts, **options)
    before, after = (dict(Fixer.from_pretrained(tmp_path / n).network.named_parameters()) for n in ("base", "out"))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    starts = {"unet": ("unet.",), "decoder": ("vae.decoder.", "vae.post_quant_conv.", "gates.", "head.")}
    if parts == "skips":
        assert moved and all("skip_conv" in name or name.startswith("gates.") for name in moved)
    else:
        assert moved and all(name.startswith(starts[parts]) for name in moved)
    with pytest.raises(InputError, match="no value of the training option train called unte; did you mean unet"):
        finetune([pairs], "tiny", tmp_path / "x", train="unte")


def test_adapters_of_another_rank_give_the_same_pixels(shared: Path, pairs: Path, tmp_path: Path) -> None:
    base = Fixer.from_pretrained(shared / "golden" / "difix_ref")
    rank = base.config.lora_rank
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wider = with_rank(base, 2 * rank, seed=0)
    assert wider.config.lora_rank == 2 * rank
    torch.testing.assert_close(wider(images), base(images), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="have learned with rank"):
        with_rank(base, rank - 1, seed=0)
    with pytest.raises(InputError, match="--lora-rank is for networks with adapters"):
        finetune([pairs], "tiny", tmp_path / "out", lora_rank=2)


def test_early_stop_and_going_on_stops_again(pairs: Path, tmp_path: Path, small: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 50, "validate_every": 1, "patience": 2}
    results = finetune([pairs], small, tmp_path / "out", learning_rate=0.0, **options)
    assert results["steps"] == 3 and results["stopped_early"] and results["best_step"] == 1
    assert finetune([pairs], small, tmp_path / "out", learning_rate=0.0, **options)["steps"] == 3


def test_half_precision(pairs: Path, tmp_path: Path, small: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 2}
    finetune([pairs], small, tmp_path / "full", **options)
    finetune([pairs], small, tmp_path / "half", dtype="bf16", **options)
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.05)
    with pytest.raises(InputError, match="needs a CUDA device"):
        finetune([pairs], small, tmp_path / "out", dtype="fp16", **options)
    with pytest.raises(InputError, match="called fp8"):
        finetune([pairs], small, tmp_path / "out", dtype="fp8", **options)


@pytest.mark.parametrize("what", ["checkpoint", "stopped at"])
def test_a_full_disk_keeps_the_last_checkpoint(pairs: Path, tmp_path: Path, what: str) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 4, "checkpoint_every": 2}
    if what == "checkpoint":  # without validation the weights are only written at the end
        manifest = json.loads((pairs / "data.json").read_text())
        (pairs / "data.json").write_text(json.dumps({"train": manifest["train"]}))
    kept: list[bytes] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        if step == 2:
            kept.append((tmp_path / "out" / "checkpoints" / "last.pt").read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))

    try:
        with pytest.raises(InputError, match=rf"{what}.*step 4.*step 2 is kept.*make room"):
            finetune([pairs], "tiny", tmp_path / "out", progress=fill, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["last.pt"]
    assert not list((tmp_path / "out").glob("*.part"))
    assert (tmp_path / "out" / "checkpoints" / "last.pt").read_bytes() == kept[0]


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoint(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "checkpoint_every": 2, "signs_every": 1000, "clip": 1e30}
    with pytest.raises(InputError, match=r"at step \d+ is not a number \(.*; lower the learning rate"):
        finetune([pairs], "tiny", tmp_path / "out", iterations=40, learning_rate=1e18, warm_up=1, **options)


def test_memory_does_not_grow_with_the_number_of_pairs(pairs: Path, tmp_path: Path) -> None:
    import tracemalloc

    entries = json.loads((pairs / "data.json").read_text())["train"]
    peaks = []
    for copies in (25, 250):
        folder = tmp_path / str(copies)
        shutil.copytree(pairs, folder)
        many = {f"{key}-{i}": entry for key, entry in entries.items() for i in range(copies)}
        (folder / "data.json").write_text(json.dumps({"train": many}))
        manifest = read_manifests([folder])
        tracemalloc.start()
        store = PairStore(manifest.train, "aligned", 2, cache_mib=0.2)
        batches = TrainingBatches(store, None, Plan(steps=100, batch=4, crop=32, views=2))
        for step in range(0, 100, 2 if copies == 25 else 1):
            assert batches[step].batch is not None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000  # bytes; decoded, the larger set's pairs are 33 MB


@pytest.mark.usefixtures("at_once")
def test_two_processes_train_like_one_and_go_on_where_one_stopped(pairs: Path, small: Path, tmp_path: Path) -> None:
    """One process with twice the batch begins and stops; two go on in its folder, as if it had never been one."""
    options = {"iterations": 6, "crop": 32, "window": 32, "perceptual_weight": 0.1, "warm_up": 1, "ema": 0.9}
    options |= {"log_every": 1, "checkpoint_every": 2, "learning_rate": 1e-3}
    plain = ("iterations", "crop", "perceptual_weight", "warm_up", "ema", "learning_rate")
    named = {name: value for name, value in options.items() if name in plain}
    line = ["finetune", pairs, "--base", small, "--device", "cpu", "--json", "-o", tmp_path / "two"]
    line += [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", value)]
    line += [part for n, value in options.items() if n not in named for part in ("--set", f"{n}={value}")]
    assert done(difix(*line, "--batch", "4"))["processes"] == 1  # the command's own folder
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune([pairs], small, tmp_path / "killed", batch=4, progress=kill, **options)
    for name in ("log.jsonl", "checkpoints/last.pt"):  # as it was after two steps
        shutil.copy(tmp_path / "killed" / name, tmp_path / "two" / name)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")[:3]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    ran = subprocess.run(
        [*launch, "-m", "difixcli", *map(str, line), "--batch", "2"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORT_PATH},
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1 and json.loads(printed[0])["results"]["processes"] == 2
    assert '"event": "resume", "step": 2' in (tmp_path / "two" / "log.jsonl").read_text()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    one, two = (Fixer.from_pretrained(tmp_path / name).network.state_dict() for name in ("one", "two"))
    start = Fixer.from_pretrained(small).network.state_dict()
    moved = torch.cat([(one[name] - start[name]).flatten() for name in start]).abs().mean()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in start]).abs().mean()
    assert apart < 1e-3 * moved


@pytest.mark.usefixtures("at_once")
def test_one_process_goes_on_where_two_stopped(shared: Path, pairs: Path, tmp_path: Path) -> None:
    """Two processes are asked to end and save; one with twice the batch goes on as if they had never been two.

    Of the published layout, whose latents are drawn at random, sample by sample.
    """
    base = shared / "golden" / "difix_ref"
    options = {"iterations": 6, "frame_height": 32, "frame_width": 48, "perceptual_weight": 0.0, "gram_weight": 0.0}
    options |= {"learning_rate": 1e-3, "warm_up": 1, "log_every": 1, "ema": 0.9}
    finetune([pairs], base, tmp_path / "one", batch=4, **options)
    program = tmp_path / "two.py"
    program.write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from difixcli import interrupts\n"
        "from difixcli.training import finetune\n"
        "interrupts.listen()\n"
        "def end(step):\n"
        "    if step == 3:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "try:\n"
        f"    finetune([{str(pairs)!r}], {str(base)!r}, Path('two'), batch=2, progress=end, **{options!r})\n"
        "except interrupts.Terminated:\n"
        "    print('saved', flush=True)\n"
        "PartialState().destroy_process_group()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORT_PATH}
    ran = subprocess.run(
        [*launch, str(program)], capture_output=True, text=True, env=surroundings, check=False, cwd=tmp_path
    )
    assert ran.returncode == 0 and ran.stdout.count("saved") == 2, ran.stderr[-3000:]
    assert len(losses(tmp_path / "two")) == 4 and not (tmp_path / "two" / "training.json").exists()
    results = finetune([pairs], base, tmp_path / "two", batch=4, **options)
    assert results["processes"] == 1 and results["steps"] == 6
    assert '"event": "resume", "step": 4' in (tmp_path / "two" / "log.jsonl").read_text()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    one, two, start = (
        Fixer.from_pretrained(path).network.state_dict() for path in (tmp_path / "one", tmp_path / "two", base)
    )
    moved = torch.cat([(one[name] - start[name]).flatten() for name in start]).abs().mean()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in start]).abs().mean()
    assert apart < 1e-3 * moved


@pytest.mark.usefixtures("at_once")
def test_the_first_process_may_work_longer_than_others_would_wait(tmp_path: Path) -> None:
    """Here they give up on a common step after two seconds, as NCCL does after ten minutes."""
    program = tmp_path / "long.py"
    program.write_text(
        "import time\n"
        "from datetime import timedelta\n"
        "from difixcli.torchvision_cure import cure; cure()\n"
        "from accelerate import PartialState\n"
        "state = PartialState(cpu=True, timeout=timedelta(seconds=2))\n"
        "from difixcli.training import processes\n"
        "processes.join('cpu')\n"
        "made = processes.from_first(lambda: time.sleep(4) or [state.process_index, 'made'])\n"
        "time.sleep(4 * state.is_main_process)\n"
        "processes.wait()\n"
        "print(state.process_index, made, flush=True)\n"
        "state.destroy_process_group()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORT_PATH}
    surroundings["ACCELERATE_USE_CPU"] = "true"
    ran = subprocess.run([*launch, str(program)], capture_output=True, text=True, env=surroundings, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert sorted(ran.stdout.splitlines()) == ["0 [0, 'made']", "1 [0, 'made']"]


def test_recipes_are_lines_that_difix_and_accelerate_understand() -> None:
    import typer.main
    from accelerate.commands.launch import launch_command_parser

    from difixcli.cli import app

    recipes = Path(__file__).parents[1] / "recipes" / "finetune"
    command = typer.main.get_command(app).commands["finetune"]  # type: ignore[attr-defined]
    about = {"PAIRS": "pairs-a pairs-b", "OUTPUT": "/out", "DRY_RUN": "1", "PATH": os.environ["PATH"]}

    def printed(script: str, **more: str) -> list[str]:
        line = ["sh", str(recipes / script)]
        return shlex.split(subprocess.run(line, env=about | more, capture_output=True, text=True, check=True).stdout)

    def parsed(arguments: list[str]) -> dict:
        return command.make_context("finetune", list(arguments), resilient_parsing=False).params

    single = printed("one_gpu.sh")
    assert single[:2] == ["difix", "finetune"]
    asked = parsed(single[2:])
    assert asked["pairs"] == ["pairs-a", "pairs-b"] and asked["output"] == Path("/out")
    assert asked["accumulate"] is None and asked["batch"] is None  # one sample a step, as in the paper
    shell = printed("slurm.sh", SLURM_NNODES="2", SLURM_GPUS_ON_NODE="4", STREAM="--stream")
    assert shell[:4] == ["srun", "--cpus-per-task=32", "sh", "-c"]
    line = shlex.split(shell[4].replace("$SLURM_NODEID", "1"))
    launch = launch_command_parser().parse_args(line[2:])
    assert (launch.num_processes, launch.num_machines, launch.machine_rank, launch.module) == (8, 2, 1, True)
    assert launch.training_script == "difixcli" and launch.training_script_args[0] == "finetune"
    asked = parsed(launch.training_script_args[1:])
    assert asked["stream"] and asked["base"] == "stabilityai/sd-turbo" and asked["pairs"] == ["pairs-a", "pairs-b"]


def test_an_unknown_base(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no base called tinny; did you mean tiny"):
        finetune([pairs], "tinny", tmp_path / "out")


@pytest.fixture
def recorded(pairs: Path) -> Path:
    """The pairs with their files' sizes and hashes, in a manifest as curation writes it: a line a pair."""
    from difixcli.curation.pairs import recorded_files

    manifest = json.loads((pairs / "data.json").read_text())
    for split in manifest.values():
        for entry in split.values():
            entry["files"] = recorded_files(pairs, entry)
            entry["camera"] = {"height": 48, "width": 56}
    lines = {s: ",\n".join(f"{json.dumps(k)}: {json.dumps(e)}" for k, e in manifest[s].items()) for s in manifest}
    text = '{"train": {\n' + lines["train"] + '\n}, "test": {\n' + lines["test"] + "\n}}\n"
    assert json.loads(text) == manifest
    (pairs / "data.json").write_text(text)
    return pairs


def test_what_curation_recorded_is_believed_until_a_file_is_read(recorded: Path, tmp_path: Path) -> None:
    """No file is looked at beforehand; one that changed, or is gone, is skipped when its turn comes."""
    first = read_manifests([recorded])
    for path in (recorded / "render0.png", recorded / "photo1.png"):
        path.rename(path.with_suffix(".away"))
    manifest = read_manifests([recorded])
    assert manifest.fingerprint == first.fingerprint and list(manifest.train) == list(first.train)
    assert manifest.train[2].size == (48, 56) and len(manifest.train[2].recorded) == 6
    assert inspect_pairs(manifest.train, 512, 16) == ({}, 48, 48)
    shutil.copy(recorded / "photo3.png", recorded / "photo1.png")  # an image, but another
    store = PairStore(manifest.train, "aligned", 2)
    with pytest.raises(ValueError, match=r"render0\.png is missing"):
        store[0]
    with pytest.raises(ValueError, match=r"photo1\.png has changed since it was curated"):
        store[1]
    np.testing.assert_array_equal(store[2].target, texture(2))
    results = finetune([recorded], "tiny", tmp_path / "out", iterations=2, **{**FAST, "perceptual_weight": 0.0})
    assert set(results["skipped"]) == {"pair0", "pair1"} and not results["dropped"]


def test_a_manifest_of_a_line_a_pair_is_read_as_any_other(recorded: Path) -> None:
    by_line = read_manifests([recorded])
    text = json.dumps(json.loads((recorded / "data.json").read_text()), indent=1)
    (recorded / "data.json").write_text(text)
    whole = read_manifests([recorded])
    assert list(by_line.train) == list(whole.train) and list(by_line.test) == list(whole.test)
    assert by_line.fingerprint == whole.fingerprint and by_line.train[1:3] == [whole.train[1], whole.train[2]]
    (recorded / "data.json").write_text('{"train": {\n"a": {"image"\n}, "test": {\n}}\n')
    with pytest.raises(InputError, match=r"data\.json"):
        read_manifests([recorded])


def test_of_a_large_set_without_records_some_headers_are_looked_at(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difixcli.training import pairs as module

    monkeypatch.setattr(module, "LOOKED_AT", 2)
    (pairs / "render1.png").unlink()  # of four pairs the first and the third are looked at
    assert inspect_pairs(read_manifests([pairs]).train, 512, 16) == ({}, 48, 48)
    (pairs / "render2.png").unlink()
    assert list(inspect_pairs(read_manifests([pairs]).train, 512, 16).dropped) == [2]


def test_bytes_are_what_a_reading_in_numbers_gives(tmp_path: Path) -> None:
    from difixcli.runs import read_image
    from difixcli.training.pairs import _bytes, _pixels

    rng = np.random.default_rng(0)
    kinds = {"RGB": (9, 7, 3), "RGBA": (9, 7, 4), "L": (9, 7), "LA": (9, 7, 2)}
    for mode, shape in kinds.items():
        path = tmp_path / f"{mode}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(path)
        for alpha in (False, True):
            np.testing.assert_array_equal(_pixels(str(path), alpha), _bytes(read_image(path, alpha=alpha)))
    Image.fromarray(rng.integers(0, 65536, (9, 7)).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(_pixels(str(tmp_path / "deep.png")), _bytes(read_image(tmp_path / "deep.png")))


def test_pairs_that_changed_do_not_resume(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 1}
    finetune([pairs], "tiny", tmp_path / "out", **options)
    manifest = json.loads((pairs / "data.json").read_text())
    manifest["train"]["pair0"]["target_image"] = "photo1.png"
    (pairs / "data.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other pairs, base or options"):
        finetune([pairs], "tiny", tmp_path / "out", **options)


def test_settings_are_read_as_what_they_are() -> None:
    found = parsed_options(["validate_every=20", "ema=0.5", "strong_augmentation=false", "pixel=l1"])
    assert found == {"validate_every": 20, "ema": 0.5, "strong_augmentation": False, "pixel": "l1"}
    for wrong, said in (("ema", "no value"), ("validate_every=often", "type int"), ("emma=1", "did you mean ema")):
        with pytest.raises(InputError, match=said):
            parsed_options([wrong])


def test_the_releases_recipe_is_the_default_for_its_networks() -> None:
    release = TrainingOptions.for_published("cuda")
    assert (release.pixel, release.signed_pixels, release.clamp_output, release.supervise) == ("l2", True, True, "all")
    assert (release.perceptual, release.perceptual_weight, release.window) == ("lpips-vgg", 1.0, 0)
    assert (release.gram_weight, release.gram_start, release.gram_window) == (1.0, 2000, 400)
    assert (release.crop, release.frame_height, release.frame_width) == (0, 576, 1024)
    assert (release.drop_references, release.fewer_references, release.strong_augmentation) == (0, 0, False)
    assert (release.flips, release.latents) == (False, "sample")
    assert (release.learning_rate, release.weight_decay, release.warm_up, release.schedule) == (
        2e-5, 1e-2, 500, "constant",
    )  # fmt: skip
    assert (release.dtype, release.clip, release.ema, release.batch) == ("bf16", 1.0, 0.0, 1)
    assert TrainingOptions.for_published("cpu").dtype == "fp32"
    ours = TrainingOptions.for_small()
    assert (ours.pixel, ours.signed_pixels, ours.clamp_output, ours.supervise) == ("l1", False, False, "render")
    assert (ours.crop, ours.window, ours.gram_window, ours.perceptual) == (128, 64, 64, "st-lpips-alex")
    assert (ours.drop_references, ours.fewer_references) == (0.1, 0.4)
    assert (ours.flips, ours.latents) == (True, "mode")


def plain_lpips_vgg() -> torch.nn.Module:
    """The package's LPIPS on VGG-16, with its trained heads and random convolutions of a sensible size."""
    cure()
    import lpips

    with torch.device("meta"):
        shell = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    shell.to_empty(device="cpu")
    shell.scaling_layer = lpips.ScalingLayer()
    generator = torch.Generator().manual_seed(3)
    for name, weight in shell.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        fan_in = weight[0].numel() if weight.ndim > 1 else 100
        scaled = values * (2 / fan_in) ** 0.5
        weight.data = scaled.abs() if name.startswith("lin") else scaled
    return shell.eval()


def release_loss_float64(
    output: np.ndarray,
    target: np.ndarray,
    network: torch.nn.Module,
    corner: tuple[int, int],
    side: int,
    gram_weight: float,
) -> tuple[float, np.ndarray]:
    """The release's loss of views (N, 3, H, W) in [-1, 1] and its gradient, in float64, as its description says.

    L2 + LPIPS over whole views + Gram over `side` × `side` pixels from `corner` on; x̂ = clamp(·, -1, 1) comes first.
    """
    import torch.nn.functional as F

    convolutions = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    stages = [convolutions[:2], convolutions[2:4], convolutions[4:7], convolutions[7:10], convolutions[10:13]]
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]

    def features(signed: torch.Tensor) -> list[torch.Tensor]:
        x, found = ((signed + 1) / 2 - mean) / deviation, []
        for number, stage in enumerate(stages):
            x = F.max_pool2d(x, 2) if number else x
            for layer in stage:
                x = F.relu(F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1))
            found.append(x)
        return found

    given = torch.tensor(output, dtype=torch.float64, requires_grad=True)
    fixed, truth = given.clamp(-1, 1), torch.tensor(target, dtype=torch.float64)
    l2 = ((fixed - truth) ** 2).mean()
    heads = [network.lin0, network.lin1, network.lin2, network.lin3, network.lin4]
    lpips = torch.zeros((), dtype=torch.float64)
    for one, other, head in zip(features(fixed), features(truth), heads, strict=True):
        apart = F.normalize(one, dim=1, eps=1e-10) - F.normalize(other, dim=1, eps=1e-10)
        lpips = lpips + torch.einsum("nchw,c->nhw", apart**2, head.model[-1].weight.double().flatten()).mean()
    window = (..., slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side))
    gram = torch.zeros((), dtype=torch.float64)
    layers = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
    for one, other, weight in zip(features(fixed[window]), features(truth[window]), layers, strict=True):
        for f, g in zip(one, other, strict=True):  # view by view
            f_flat, g_flat = f.flatten(1), g.flatten(1)
            squares = (f_flat @ f_flat.T - g_flat @ g_flat.T) ** 2
            gram = gram + weight * squares.mean() / f.numel() / len(one)
    total = l2 + lpips + gram_weight * gram
    total.backward()
    assert given.grad is not None
    return total.item(), given.grad.numpy()


def test_the_loss_and_its_gradient_are_the_releases_in_float64() -> None:
    """Two views, with values beyond what pixels can be; LPIPS sees all of them, the Gram term a window."""
    generator = torch.Generator().manual_seed(0)
    side = 48
    target = torch.rand(2, 3, side + 8, side + 16, generator=generator)
    output = target + 0.4 * torch.randn(target.shape, generator=generator)
    network = plain_lpips_vgg()
    options = TrainingOptions.for_published()
    loss = FixerLoss(
        options.pixel, options.perceptual, options.perceptual_weight, options.gram_weight, options.gram_start,
        options.window, gram_window=side, signed_pixels=options.signed_pixels,
        clamp_output=options.clamp_output, network=Lpips("vgg", network),
    )  # fmt: skip
    for step, gram_weight in ((1999, 0.0), (2000, 1.0)):
        given = output.clone().requires_grad_()
        total, parts = loss(given, target, step)
        total.backward()
        draw = torch.Generator().manual_seed(step)
        corner = int(torch.randint(9, (), generator=draw)), int(torch.randint(17, (), generator=draw))
        signed = 2 * output.double().numpy() - 1, 2 * target.double().numpy() - 1
        expected, gradient = release_loss_float64(*signed, network, corner, side, gram_weight)
        assert total.item() == pytest.approx(expected, rel=1e-5)
        assert set(parts) == {"pixel", "perceptual"} | ({"gram"} if gram_weight else set())
        error = np.linalg.norm(given.grad.numpy() - 2 * gradient) / np.linalg.norm(gradient)  # of [0, 1], not [-1, 1]
        assert error < 1e-3
        assert not given.grad[(output < 0) | (output > 1)].any()
    assert parts["gram"] > 1e-3 * total  # it counts


def test_every_view_is_supervised_as_the_release_does(shared: Path, pairs: Path, tmp_path: Path) -> None:
    """A reference is cleaned as a render beside which the render stands; its target is itself; frames are whole."""
    base = shared / "golden" / "difix_ref"
    network = Fixer.from_pretrained(base).network
    generator = torch.Generator().manual_seed(1)
    images, references = (torch.rand(2, 3, 32, 48, generator=generator) for _ in range(2))
    with torch.no_grad():
        both = AllViews(network)(images, references[:, None])
        torch.testing.assert_close(both[:, 0], network(images, references[:, None]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[:, 1], network(references, images[:, None]), atol=1e-5, rtol=1e-5)
        assert AllViews(network)(images).shape == (2, 1, 3, 32, 48)

    fast = {"frame_height": 32, "frame_width": 48, "perceptual": "st-lpips-vgg", "gram_start": 0, "batch": 2}
    chosen = with_options(TrainingOptions.for_published(), {**fast, "iterations": 1}, "cpu")
    training = _Training(Fixer(network), chosen, tmp_path / "out", "cpu", None)
    training.load_data([str(pairs)], None, False, str(base))
    draw = next(iter(training.loader))
    assert draw.batch.images.dtype == torch.uint8 and draw.batch.images.shape == (2, 3, 32, 48)
    batch = draw.batch.unit()
    drawn = training.plan.latent_noise(0, (2, network.config.vae["latent_channels"], 4, 6))
    with torch.no_grad():
        output = AllViews(network)(batch.images, batch.references, latent_noise=drawn)
        wanted, parts = training.loss(
            output.flatten(0, 1), torch.cat([batch.targets[:, None], batch.references], dim=1).flatten(0, 1), 0
        )
    truths = torch.stack([batch.targets, batch.references[:, 0]], dim=1)
    torch.testing.assert_close(parts["pixel"], 4 * (output.clamp(0, 1) - truths).square().mean())
    training.run(None)
    training.journal.close()
    assert training.judge == "st_lpips_alex" and set(training.baselines["identity"]) == {"psnr", "ssim", training.judge}
    assert losses(tmp_path / "out")[0] == pytest.approx(wanted.item(), rel=1e-4)


def test_latents_are_drawn_from_the_encoders_distribution(shared: Path, pairs: Path, tmp_path: Path) -> None:
    """Against diffusers' own distribution; the same at the same step, however it is come to."""
    base = shared / "golden" / "difix_ref"
    fixer = Fixer.from_pretrained(base)
    network = fixer.network
    with torch.no_grad():  # a variance that counts
        network.vae.quant_conv.bias[network.config.vae["latent_channels"] :] = -1.0
    generator = torch.Generator().manual_seed(1)
    images, references = (torch.rand(2, 3, 32, 48, generator=generator) for _ in range(2))
    shape = (network.config.vae["latent_channels"], 32 // network.config.multiple, 48 // network.config.multiple)
    noise = torch.randn(2, 2, *shape, generator=generator)
    with torch.no_grad():
        drawn = network.encode(images * 2 - 1, noise[:, 0])[0] / network.vae.config.scaling_factor
        gaussian = network.vae.encode(images * 2 - 1).latent_dist
        torch.testing.assert_close(drawn, gaussian.mean + gaussian.std * noise[:, 0])
        assert (drawn - gaussian.mean).abs().mean() > 0.1
        both = AllViews(network)(images, references[:, None], latent_noise=noise)
        alone = network(images, references[:, None], latent_noise=noise)
        torch.testing.assert_close(both[:, 0], alone, atol=1e-5, rtol=1e-5)
        swapped = network(references, images[:, None], latent_noise=noise.flip(1))
        torch.testing.assert_close(both[:, 1], swapped, atol=1e-5, rtol=1e-5)
        assert (alone - network(images, references[:, None])).abs().mean() > 1e-4

    fixer.save_pretrained(tmp_path / "base")
    options = {"frame_height": 32, "frame_width": 48, "batch": 2, "iterations": 4, "checkpoint_every": 2}
    options |= {"perceptual_weight": 0.0, "gram_weight": 0.0, "learning_rate": 1e-3, "warm_up": 1, "log_every": 1}

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    finetune([pairs], tmp_path / "base", tmp_path / "whole", **options)
    with pytest.raises(Killed):
        finetune([pairs], tmp_path / "base", tmp_path / "killed", progress=kill, **options)
    torch.rand(5)  # whatever else the process does
    finetune([pairs], tmp_path / "base", tmp_path / "killed", **options)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    finetune([pairs], tmp_path / "base", tmp_path / "rounds", **options | {"batch": 1, "accumulate": 2})
    np.testing.assert_allclose(losses(tmp_path / "rounds"), losses(tmp_path / "whole"), rtol=1e-4)
    first = options | {"iterations": 1}
    finetune([pairs], tmp_path / "base", tmp_path / "mode", latents="mode", **first)
    finetune([pairs], tmp_path / "base", tmp_path / "other", seed=1, **first)
    for name in ("mode", "other"):
        assert abs(losses(tmp_path / name)[0] / losses(tmp_path / "whole")[0] - 1) > 1e-3
    with pytest.raises(InputError, match="latents=mode"):
        finetune([pairs], "tiny", tmp_path / "tiny", latents="sample", **FAST)


def test_without_flips_no_sample_is_mirrored(pairs: Path) -> None:
    store = PairStore(read_manifests([pairs]).train, "raw", 1)
    about = {"steps": 12, "batch": 1, "crop": 0, "views": 1, "strong": False, "drop_references": 0.0}
    mirrored: dict[bool, int] = {}
    for flips in (False, True):
        batches = TrainingBatches(store, None, Plan(flips=flips, **about))
        mirrored[flips] = 0
        for step in range(12):
            photo = np.asarray(store[batches.index(step)].target)
            shown = batches[step].batch.targets[0].permute(1, 2, 0).numpy()
            assert np.array_equal(shown, photo) or np.array_equal(shown, photo[:, ::-1])
            mirrored[flips] += np.array_equal(shown, photo[:, ::-1])
    assert mirrored[False] == 0 and 2 <= mirrored[True] <= 10


def test_small_pairs_are_told_of_before_they_are_enlarged(shared: Path, pairs: Path, tmp_path: Path) -> None:
    line = ["finetune", pairs, "--base", shared / "golden" / "difix_ref", "--device", "cpu", "--iterations", "1"]
    line += ["--perceptual-weight", "0", "--gram-weight", "0"]
    enlarged = difix(*line, "--set", "frame_height=96", "--set", "frame_width=160", "-o", tmp_path / "a")
    assert enlarged.exit_code == 0 and "48 pixels at their shorter side" in enlarged.output.replace("\n", " ")
    assert "--crop N" in enlarged.output
    cropped = difix(*line, "--crop", "32", "-o", tmp_path / "b")
    assert cropped.exit_code == 0 and "--crop N" not in cropped.output


def test_frames_are_stretched_each_from_its_own_pixels(tmp_path: Path) -> None:
    photo, other = texture(0, 90, 160), texture(1, 64, 64)
    entry = {"image": save(tmp_path / "r.png", blurred(photo)), "target_image": save(tmp_path / "t.png", photo)}
    entry["ref_image"] = save(tmp_path / "o.png", other)
    (tmp_path / "data.json").write_text(json.dumps({"train": {"a": entry}}))
    pair = PairStore(read_manifests([tmp_path]).train, "raw", 1, frame=(48, 88))[0]
    assert pair.render.shape == pair.target.shape == pair.references[0].shape == (48, 88, 3)
    planar = torch.from_numpy(np.stack([photo])).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(planar, (48, 88), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(pair.target - expected.numpy()).max() <= 1.5
    assert pair.opacity.min() == 255 and pair.visibility.shape == (1, 48, 88)


def test_what_trains_is_decided_by_name_and_never_judges(shared: Path, pairs: Path, tmp_path: Path) -> None:
    base = shared / "golden" / "difix_ref"
    line = ["finetune", pairs, "--base", base, "--device", "cpu", "--iterations", "1"]
    line += ["--set", "frame_height=32", "--set", "frame_width=32"]
    if not lpips_available("vgg"):
        refused(difix(*line, "-o", tmp_path / "a"), "difix download lpips-vgg", "--perceptual st-lpips-vgg")
    refused(difix(*line, "-o", tmp_path / "b", "--perceptual", "st-lpips-alex"), "judge", "--gram-weight 0")
    said = done(difix(*line, "-o", tmp_path / "c", "--perceptual", "st-lpips-vgg", "--json"))
    assert said["perceptual"] == "st-lpips-vgg" and said["judge"] == "st_lpips_alex"
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    assert record["results"]["perceptual"] == "st-lpips-vgg" and record["results"]["judge"] == "st_lpips_alex"
    for wrong, word in (("supervise=all", "supervise=render"), ("crop=0", "--crop")):
        with pytest.raises(InputError, match=word):
            options = dict([wrong.split("=")]) | ({"crop": 0} if wrong == "crop=0" else {})
            finetune([], "tiny", tmp_path / "d", photos=pairs, **options)
    with pytest.raises(InputError, match="multiple of 8"):
        finetune([pairs], base, tmp_path / "d", frame_height=33, perceptual="st-lpips-vgg")


def test_what_says_nothing_or_twice_is_refused(pairs: Path, tmp_path: Path) -> None:
    line = ["finetune", pairs, "--base", "tiny", "--device", "cpu", "-o", tmp_path / "out"]
    refused(difix("finetune", tmp_path / "nosuch", "-o", tmp_path / "out"), "nosuch", "difix curate")
    refused(difix(*line, "--crop", "32", "--set", "crop=48"), "--crop")
    refused(difix(*line, "--set", "seed=3"), "--seed")
    refused(
        difix(*line[:-1], tmp_path / "none", "--photos", tmp_path / "nowhere"), "nowhere", "--photos wants a folder"
    )
    assert not (tmp_path / "none").exists()
    refused(difix(*line, "--set", "clip=0"), "clip")
    refused(difix(*line, "--ema", "1"), "ema=1")
    refused(difix(*line, "--set", "photo_share=0.3"), "--photos")


def test_a_run_goes_on_with_another_batch_of_as_many_samples(pairs: Path, tmp_path: Path) -> None:
    """As when it was begun on more GPUs; a stop before the first checkpoint leaves nothing twice in the log."""
    line = ["finetune", pairs, "--base", "tiny", "--device", "cpu", "--crop", "32", "--perceptual-weight", "0"]
    line += ["--iterations", "3", "--set", "log_every=1", "--json", "-o", tmp_path / "out"]
    assert done(difix(*line, "--batch", "2"))["steps"] == 3
    assert done(difix(*line, "--batch", "1", "--accumulate", "2", "--gradient-checkpointing"))["steps"] == 3
    refused(difix(*line, "--batch", "4"), "other pairs, base or options")
    (tmp_path / "out" / "checkpoints" / "last.pt").rename(tmp_path / "out" / "checkpoints" / ".last.pt.1.part")
    assert done(difix(*line, "--batch", "2"))["steps"] == 3
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["last.pt"]
    assert len(losses(tmp_path / "out")) == 3


def test_renders_that_equal_their_photos_validate_nothing(pairs: Path, tmp_path: Path) -> None:
    """Their PSNR is infinite, which would make every step as good as the first."""
    manifest = json.loads((pairs / "data.json").read_text())
    perfect = next(iter(manifest["test"].values()))
    manifest["test"]["perfect"] = {**perfect, "image": perfect["target_image"]}
    (pairs / "data.json").write_text(json.dumps(manifest))
    results = finetune([pairs], "tiny", tmp_path / "out", **{**FAST, "perceptual_weight": 0.0, "iterations": 1})
    assert results["pairs"]["test"] == len(manifest["test"]) - 1 and "equals its photo" in results["dropped"]["perfect"]
    assert np.isfinite(results["validation"]["identity"]["psnr"])


def test_processes_agree_about_lanes_and_signs(tars: Path, tmp_path: Path) -> None:
    """A process that goes on knows of others' lanes only where they began; it may have no references where they do."""
    training = _Training(new_small_fixer("tiny"), TrainingOptions.for_small(), tmp_path / "out", "cpu", None)
    training.places = {0: (1, 5), 1: (0, 2)}
    others = {0: [0, 1], 1: (0, 9), 2: (0, 4)}  # pinned memory makes lists of pairs
    training.tell_places(others)
    assert training.places == {0: (1, 5), 1: (0, 9), 2: (0, 4)}
    training.journal.close()


def bundled_recipe() -> ModuleType:
    path = Path(__file__).parents[1] / "recipes" / "bundled_fixer" / "train.py"
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bundled_recipe_asks_for_options_that_exist() -> None:
    module, asked = bundled_recipe(), []
    for name, _, _, options in module.stages(Path("out")):
        chosen = with_options(TrainingOptions.for_small(), {**module.COMMON, **options}, "cpu")
        asked.append((name, chosen.iterations, chosen.crop, chosen.photo_share, chosen.improved_share))
    assert asked[0] == ("synthetic", 500, 96, 0.5, 0) and asked[-2] == ("real-d", 1600, 112, 0.1, 0)
    assert asked[-1] == ("strong", 1400, 112, 0.1, 0.25)


def test_the_bundled_recipe_runs_to_its_end_and_mixes(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own stages, on pairs of a toy's size and a step each; the weights lie between those of the last two."""
    module = bundled_recipe()
    made, output = module.stages, tmp_path / "out"
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", texture(i, 64, 80))
    for manifest in {path for _, _, manifests, _ in made(output) for path in manifests}:
        shutil.copytree(pairs, manifest.parent)
    short = {"iterations": 1, "crop": 32, "window": 32, "warm_up": 1, "validation_pairs": 1}
    monkeypatch.setattr(module, "stages", lambda out: tuple((n, b, p, {**o, **short}) for n, b, p, o in made(out)))
    assert module.main(tmp_path / "photos", output) == 0
    one, other, bundled = (load_file(output / n / "model.safetensors") for n in ("real-d", "strong", "bundled"))
    share, apart = module.STRONG_SHARE, 0.0
    assert 0 < share < 1 and one.keys() == other.keys() == bundled.keys()
    for name, weight in bundled.items():
        assert weight.dtype == torch.float16
        between = (1 - share) * one[name].float() + share * other[name].float()
        torch.testing.assert_close(weight.float(), between, rtol=1e-3, atol=1e-6)
        apart = max(apart, float((one[name] - other[name]).abs().max()))
    assert apart > 1e-5
    bolder = load_file(output / "bundled" / "bolder.safetensors")
    assert all(torch.equal(bolder[name], weight.half()) for name, weight in one.items())
    # which are no part of what is trained from it
    finetune([pairs / "data.json"], output / "bundled", output / "further", **{**FAST, "iterations": 1})
    assert not (output / "further" / "bolder.safetensors").exists()
    fixer, half = Fixer.from_pretrained(output / "bundled"), Fixer.from_pretrained(output / "strong")
    assert fixer.config == half.config
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert fixer(image).shape == image.shape
    # where a stage's pairs are others now, it is said what has to go for that
    manifest = json.loads((output / "pairs-strong-nerf" / "data.json").read_text())
    manifest["train"].popitem()
    (output / "pairs-strong-nerf" / "data.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert module.main(tmp_path / "photos", output) == 2
    assert f"say, remove {output / 'strong'}." in capsys.readouterr().err
