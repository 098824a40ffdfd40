"""Our video model: a fixer's network with layers that make films of its pictures, windows, and its folders."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from difixcli.errors import InputError
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.network import FixerConfig, FixerNetwork
from difixcli.priors.video.files import around, load_film, save_film
from difixcli.priors.video.film import FixerFilm
from difixcli.priors.video.network import FilmConfig, FilmNetwork
from difixcli.priors.video.opening import open_video_model
from difixcli.priors.video.span import Span, VideoModel
from difixcli.priors.video.views import Geometry
from difixcli.priors.video.windows import joined, windows
from difixcli.scenes.scene import Camera

HEIGHT, WIDTH = 24, 40


def span(count: int = 5, seed: int = 0, points: int = 64) -> Span:
    """Cameras that move along a plane at distance 1, one pixel a picture; renders are blurred, photos are not."""
    draw = np.random.default_rng(seed)
    wall = cv2.GaussianBlur(draw.random((HEIGHT, WIDTH + count, 3)), (0, 0), 2).astype(np.float32)
    wall = (wall - wall.min()) / np.ptp(wall)
    pictures = [wall[:, i : i + WIDTH] for i in range(count)]
    cameras = []
    for i in range(count):
        pose = np.eye(4)
        pose[0, 3] = i / 50
        cameras.append(Camera(pose, 50.0, 50.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT))
    return Span(
        cameras=cameras,
        photos=np.stack([pictures[0], pictures[-1]]),
        renders=np.stack([cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in pictures]),
        opacity=np.ones((count, HEIGHT, WIDTH), np.float32),
        depth=np.ones((count, HEIGHT, WIDTH), np.float32),
        points=draw.random((points, 3)),
        colors=draw.random((points, 3)).astype(np.float32),
    )


def planar(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def frame_by_frame(fixer: Fixer, of: Span) -> np.ndarray:
    """The fixer's own pictures of a span, beside both photos."""
    renders, photos = planar(of.renders), planar(of.photos)
    opacity = torch.from_numpy(of.opacity)[:, None]
    if fixer.config.references == "raw":
        made = fixer(renders, photos.expand(len(renders), -1, -1, -1, -1), opacity)
    else:
        geometry = Geometry.of(of.cameras, of.depth)
        views = [geometry.beside(i, renders[i], photos) for i in range(len(renders))]
        aligned, visible = (torch.stack([view[k] for view in views]) for k in (0, 1))
        made = fixer(renders, aligned, opacity, visible)
    return made.permute(0, 2, 3, 1).numpy()


def opened(network: FilmNetwork, gate: float = 0.5) -> FilmNetwork:
    with torch.no_grad():
        for name, value in network.new_layers():
            if name.endswith("gate"):
                value.fill_(gate)
    return network


@pytest.fixture(scope="module")
def small() -> FixerNetwork:
    return new_small_fixer("tiny", seed=3).network


def raw_config(small: FixerNetwork, attention: str) -> FixerConfig:
    vae = {**small.config.vae, "in_channels": 3, "out_channels": 3}
    return replace(
        small.config,
        vae=vae,
        references="raw",
        views=2,
        pixel_unshuffle=1,
        reference_attention=attention,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def bundled() -> FixerFilm:
    found = open_video_model("bundled")
    assert isinstance(found, FixerFilm) and isinstance(found, VideoModel)
    return found


def test_before_training_it_films_what_the_fixer_makes_frame_by_frame_bit_for_bit() -> None:
    network = around(Fixer.from_pretrained("bundled").network, "bundled")
    shown = span()
    made = FixerFilm(network).film(shown, 0)
    assert made.shape == shown.renders.shape and made.dtype == np.float32
    assert np.array_equal(made, frame_by_frame(Fixer.from_pretrained("bundled"), shown))


@pytest.mark.parametrize("attention", ["mutual", "one-way"])
def test_fixers_that_look_photos_up_are_told_where(small: FixerNetwork, attention: str) -> None:
    network = FixerNetwork(replace(raw_config(small, attention), references="geometry"))
    shown, told = span(), []
    film = FixerFilm(around(network, None))
    film.fixer.notice = told.append
    made = film.film(shown, 0)
    assert not told
    fixer, geometry = Fixer(network), Geometry.of(shown.cameras, shown.depth)
    images = (planar(shown.renders), planar(shown.photos).expand(5, -1, -1, -1, -1), torch.ones(5, 1, HEIGHT, WIDTH))
    places = torch.cat([geometry.places(i) for i in range(5)])
    wanted = fixer(*images, correspondence=places).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    assert np.abs(made - fixer(*images).permute(0, 2, 3, 1).numpy()).max() > 1e-4
    # a picture is one pixel further on than the one before it
    x = torch.arange(WIDTH).expand(HEIGHT, WIDTH)
    known = places[:, :, 2] > 0
    torch.testing.assert_close(places[1, 0, 0][known[1, 0]], (x + 1.0)[known[1, 0]], atol=0.1, rtol=0)
    torch.testing.assert_close(places[1, 1, 0][known[1, 1]], (x - 3.0)[known[1, 1]], atol=0.1, rtol=0)
    assert known.float().mean() > 0.8


@pytest.mark.parametrize("attention", ["mutual", "one-way"])
def test_raw_references_too_are_filmed_as_the_fixer_makes_them(small: FixerNetwork, attention: str) -> None:
    torch.manual_seed(0)
    plain = FixerNetwork(raw_config(small, attention))
    wanted = frame_by_frame(Fixer(plain), span(3))
    film = FixerFilm(around(plain, None))
    assert np.array_equal(film.film(span(3), 0), wanted)
    opened(film.network)
    assert np.abs(film.film(span(3), 0) - wanted).max() > 1e-4


def test_pictures_know_of_each_other_and_of_the_structure(small: FixerNetwork) -> None:
    film = FixerFilm(around(small, None))
    shown = span()
    opened(film.network)
    made = film.film(shown, 0)
    assert np.array_equal(film.film(shown, 1), made), "nothing is drawn"
    renders = shown.renders.copy()
    renders[4] = 1 - renders[4]
    assert not np.array_equal(film.film(replace(shown, renders=renders), 0)[0], made[0])
    assert not np.array_equal(film.film(replace(shown, colors=1 - shown.colors), 0), made)
    nothing = replace(shown, points=np.zeros((0, 3)), colors=np.zeros((0, 3), np.float32))
    assert np.isfinite(film.film(nothing, 0)).all()


@pytest.mark.parametrize(("gate", "reach"), [("temporal", 4), ("neighbours", 2)])
def test_each_part_reaches_as_far_as_it_should(small: FixerNetwork, gate: str, reach: int) -> None:
    """A change of the last picture's render is felt by all through attention, by neighbours through their blend."""
    film = FixerFilm(around(small, None))
    with torch.no_grad():
        for name, value in film.network.new_layers():
            if name.startswith(gate) and name.endswith("gate"):
                value.fill_(0.5)
    shown = span()
    renders = shown.renders.copy()
    renders[4] = 0.5 * renders[4]
    apart = np.abs(film.film(replace(shown, renders=renders), 0) - film.film(shown, 0)).max(axis=(1, 2, 3))
    assert (apart > 1e-6).tolist() == [4 - i <= reach for i in range(5)]


def test_layers_are_at_work_only_while_a_film_is_made(small: FixerNetwork) -> None:
    film = FixerFilm(around(small, None))
    before = frame_by_frame(film.fixer, span(3))
    opened(film.network)
    film.film(span(3), 0)
    assert np.array_equal(frame_by_frame(film.fixer, span(3)), before)


def test_neighbours_are_seen_where_depth_says(small: FixerNetwork) -> None:
    shown = span()
    geometry = Geometry.of(shown.cameras, shown.depth)
    pictures = planar(shown.photos[:1]).expand(5, -1, -1, -1).clone()
    truth = planar(np.stack([shown.renders[i] for i in range(5)]))
    near, visible = geometry.near(2, range(5), truth)
    assert near.shape == (4, 3, HEIGHT, WIDTH) and visible.shape == (4, 1, HEIGHT, WIDTH)
    inside = (slice(None), slice(None), slice(4, -4), slice(6, -6))
    assert float((near[inside] - truth[2][inside[1:]]).abs().max()) < 0.03
    assert float(visible[inside].min()) > 0.9
    assert len(geometry.near(0, range(0, 5), pictures)[0]) == 2
    assert len(geometry.near(3, range(3, 5), pictures[3:])[0]) == 1


def test_holes_without_any_depth_are_filmed(small: FixerNetwork) -> None:
    film = FixerFilm(opened(around(small, None)))
    shown = span(3)
    empty = np.zeros_like(shown.depth)
    made = film.film(replace(shown, depth=empty, opacity=empty, renders=np.zeros_like(shown.renders)), 0)
    assert np.isfinite(made).all() and made.min() >= 0 and made.max() <= 1


def test_windows_share_pictures_and_cover_the_way() -> None:
    assert windows(5, 8, 2) == [range(5)]
    for count in range(9, 40):
        found = windows(count, 8, 2)
        assert found[0].start == 0 and found[-1].stop == count
        assert all(len(window) == 8 for window in found)
        assert all(one.stop - two.start >= 2 for one, two in itertools.pairwise(found))
    with pytest.raises(InputError, match="share"):
        windows(20, 8, 8)


def test_windows_fade_into_each_other() -> None:
    parts = windows(7, 4, 1)
    assert parts == [range(0, 4), range(3, 7)]
    ones = [np.full((4, 1, 1, 3), value, np.float32) for value in (0.0, 1.0)]
    whole = joined(zip(parts, ones, strict=True), 7)[:, 0, 0, 0]
    assert whole.tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    draw = np.random.default_rng(0).random((7, 2, 2, 3)).astype(np.float32)
    same = joined(((window, draw[window.start : window.stop]) for window in windows(7, 4, 2)), 7)
    assert np.array_equal(same, draw)


def test_a_long_way_is_filmed_in_windows(small: FixerNetwork) -> None:
    long = span(7)
    plain = FixerFilm(around(small, None, config=FilmConfig(window=4, shared=2))).film(long, 0)
    assert np.allclose(plain, frame_by_frame(Fixer(small), long), atol=1e-5)


def test_one_picture_is_no_film(bundled: FixerFilm) -> None:
    shown = span(2)
    alone = Span(
        shown.cameras[:1],
        shown.photos,
        shown.renders[:1],
        shown.opacity[:1],
        shown.depth[:1],
        shown.points,
        shown.colors,
    )
    with pytest.raises(InputError, match="two pictures"):
        bundled.film(alone, 0)


def test_a_folder_holds_only_what_is_not_the_fixers(tmp_path: Path, small: FixerNetwork) -> None:
    own = opened(around(Fixer.from_pretrained("bundled").network, "bundled", seed=1))
    folder = save_film(own, tmp_path / "own")
    assert (folder / "model.safetensors").stat().st_size < 1e6
    assert np.array_equal(open_video_model(folder).film(span(), 0), FixerFilm(own).film(span(), 0))
    whole = opened(around(small, None, seed=1))
    folder = save_film(whole, tmp_path / "whole")
    assert (folder / "fixer.json").is_file()
    assert np.array_equal(open_video_model(str(folder)).film(span(), 0), FixerFilm(whole).film(span(), 0))


def test_weights_of_another_fixer_and_damaged_folders_are_told(tmp_path: Path, small: FixerNetwork) -> None:
    folder = save_film(around(Fixer.from_pretrained("bundled").network, "bundled"), tmp_path / "film")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "fixer_digest": "0" * 32}))
    with pytest.raises(InputError, match="another version of the fixer bundled"):
        load_film(folder)
    (folder / "config.json").write_text(json.dumps({**values, "window": "many"}))
    with pytest.raises(InputError, match="window"):
        load_film(folder)
    (folder / "config.json").write_text(json.dumps({**values, "hidden_channels": 8}))
    with pytest.raises(InputError, match="does not fit"):
        load_film(folder)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        load_film(folder)
    with pytest.raises(InputError, match="no video model of ours"):
        load_film(tmp_path)


def test_names_that_mean_no_video_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        open_video_model(tmp_path)
    with pytest.raises(InputError, match=r"no video model called bundeld; did you mean bundled"):
        open_video_model("bundeld")
