"""Training: pairs, losses, synthetic pairs, the loop, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.errors import InputError
from difixcli.fixer import Fixer
from difixcli.training import TrainingOptions, finetune
from difixcli.training.finetune import learning_rate
from difixcli.training.losses import GRAM_WEIGHTS, FixerLoss, gram_distance
from difixcli.training.pairs import PairStore, TrainingBatches, read_manifests
from difixcli.training.synthetic import PhotoPairs, synthesise

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
    assert (output / "validation.png").is_file()


def test_resuming_is_exact(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "iterations": 6, "checkpoint_every": 3, "validate_every": 3, "perceptual_weight": 0.0}
    finetune([pairs], "tiny", tmp_path / "whole", **options)
    killed = tmp_path / "killed"

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 5:  # the checkpoint is from step 3: two steps are lost
            raise Killed

    with pytest.raises(Killed):
        finetune([pairs], "tiny", killed, progress=kill, **options)
    finetune([pairs], "tiny", killed, **options)
    assert losses(killed) == losses(tmp_path / "whole")
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


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


def test_photos_are_held_no_larger_than_they_are_used(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1500, 1100), "teal").save(tmp_path / "photos" / "large.jpg")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "photos" / "small.jpg")
    assert [photo.shape for photo in PhotoPairs(tmp_path / "photos").train] == [(751, 1024, 3), (60, 90, 3)]
    store = PairStore(read_manifests([pairs]).train, "raw", 1, memory_gib=0)
    for index in range(len(store)):
        _ = store[index]
    assert store._photos is None  # what is read again from disk is not held beside the pairs


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


def test_bad_pairs_are_dropped_counted_and_explained(pairs: Path, tmp_path: Path) -> None:
    manifest = json.loads((pairs / "data.json").read_text())
    (pairs / "render0.png").write_bytes((pairs / "render0.png").read_bytes()[:200])
    (pairs / "photo1.png").unlink()
    save(pairs / "photo2.png", texture(2, 30, 90))
    manifest["train"]["odd"] = {"image": None}
    (pairs / "data.json").write_text(json.dumps(manifest))
    results = finetune([pairs], "tiny", tmp_path / "out", iterations=1, **{**FAST, "perceptual_weight": 0.0})
    assert results["pairs"]["train"] == 1 and results["pairs"]["dropped"] == 4
    reasons = " ".join(results["dropped"].values())
    assert "render0.png cannot be read" in reasons and "photo1.png is missing" in reasons
    assert "another shape" in reasons and "no file name" in reasons


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


def test_crops_and_flips_keep_a_pair_together(pairs: Path) -> None:
    store = PairStore(read_manifests([pairs]).train, "aligned", views=2)
    batches = TrainingBatches(store, None, steps=40, batch=2, crop=24, views=2, seed=3)
    counts = set()
    for step in range(40):
        batch = batches[step]
        assert batch.images.shape == batch.targets.shape == (2, 3, 24, 24)
        counts.add(0 if batch.references is None else batch.references.shape[1])
        if batch.references is not None and batch.visibility is not None:
            # the references are the photos themselves, so they must coincide with the target everywhere
            torch.testing.assert_close(batch.references, batch.targets[:, None].expand_as(batch.references))
            assert batch.visibility.shape == (2, batch.references.shape[1], 1, 24, 24)
    assert counts == {0, 1, 2}
    again = TrainingBatches(store, None, steps=40, batch=2, crop=24, views=2, seed=3)[7]
    assert torch.equal(again.images, batches[7].images)
    seen = {batches._index(step, slot) for step in range(2) for slot in range(2)}
    assert seen == {0, 1, 2, 3}  # an epoch goes through all pairs


def test_small_images_make_small_crops(pairs: Path) -> None:
    store = PairStore(read_manifests([pairs]).train, "aligned", views=1)
    batch = TrainingBatches(store, None, steps=1, batch=2, crop=512, views=1, multiple=16)[0]
    assert batch.images.shape[-2:] == (48, 48)


def test_pairs_beyond_the_memory_are_read_again(pairs: Path) -> None:
    manifest = read_manifests([pairs])
    kept = PairStore(manifest.train, "aligned", views=2)
    read = PairStore(manifest.train, "aligned", views=2, memory_gib=0.0)
    for i in range(len(kept)):
        for one, other in zip(kept[i], read[i], strict=True):
            np.testing.assert_array_equal(one, other)


def test_synthetic_pairs() -> None:
    photo, other = texture(1, 70, 90), texture(2, 70, 90)
    samples = [synthesise(photo, other, 48, 3, np.random.default_rng(seed)) for seed in range(20)]
    for sample in samples:
        assert sample.render.shape == sample.target.shape == (48, 48, 3)
        assert sample.references.shape == (3, 48, 48, 3) and sample.visibility.shape == (3, 48, 48)
        for part in sample:
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
    assert results["pairs"] == {"train": 0, "test": 0, "dropped": 1, "photos": 3}
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


def test_log_survives_a_line_cut_short(pairs: Path, tmp_path: Path) -> None:
    options = {**FAST, "perceptual_weight": 0.0, "iterations": 2}
    finetune([pairs], "tiny", tmp_path / "out", **options)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy)
    with (copy / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    finetune([pairs], "tiny", copy, **options)
    assert losses(copy) == losses(tmp_path / "out")
