"""Pixels in, pixels out: the fixer as the rest of the project knows it."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.errors import InputError, out_of_memory, unknown
from difixcli.fixer.correspondence import cropped, mirrored, padded
from difixcli.fixer.detail import blur, keep_known_detail
from difixcli.fixer.network import EncodedReferences, FixerConfig, FixerNetwork, small_config
from difixcli.fixer.registered import RegisteredPhotos
from difixcli.fixer.tiling import Window, fade, windows
from difixcli.fixer.tone import keep_unseen_tone
from difixcli.fixer.weights import load_networks, merge_adapters, save_networks
from difixcli.images import averaged, in_unit
from difixcli.model_folders import SMALL_SIZES

# Images of more pixels than such a square are fixed in windows. 1536² is more than 1080p, which GPUs hold whole.
TILE = {"cpu": 1024, "cuda": 1536}
SMALLEST_TILE = 256
# Bytes of encodings (and of the photos they are recognised by) that are kept for further frames.
_HELD_BYTES = 2**30


class ReferenceEncoding:
    """Clean photos, encoded once for all frames beside which they stand; made by `Fixer.encode_references`.

    `photos` (V, 3, H, W) in [0, 1]. Only `Fixer` looks inside.
    """

    def __init__(self, photos: Tensor) -> None:
        self.photos = photos


class Fixer:
    """A network with its weights, on a device. `network` is the differentiable part, for training.

    Images of more than `tile`² pixels are fixed in overlapping windows of that side at most, whose seams are blended;
    by default, and again where the memory proves too small, it is chosen by the device. References as the photos are
    are cut to the same window: neighbouring photos show about the same there, at the same scale. Places of theirs that
    lie outside of it are then not known.

    Some come as two: `bolder` is a network of the same configuration that mends more and harms more of what is right;
    a call says with `boldness` how far it counts.

    `notice` is called with a sentence when something the caller may want to know happens, `tile_done` after each of an
    image's windows, where there are several, with how many are done and how many there are.
    """

    def __init__(self, network: FixerNetwork, tile: int | None = None, bolder: FixerNetwork | None = None) -> None:
        self.network = network.eval()
        self.bolder = None if bolder is None else bolder.eval()
        self._between = None if bolder is None else copy.deepcopy(network)  # whose weights lie between theirs
        self.tile = tile
        self.notice: Callable[[str], None] = lambda message: None
        self.tile_done: Callable[[int, int], None] = lambda done, total: None
        self._held: OrderedDict[tuple, tuple[Tensor, EncodedReferences]] = OrderedDict()
        self._held_of: tuple = ()
        self._told = False  # that references came without their geometry

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        merge: bool = False,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Fixer:
        """Loads weights by name or from a path.

        `bundled` is the small fixer that comes with the package. A path is a folder (ours, or the published diffusers
        layout) or a `.pkl` of the release's trainer. Anything else of the form OWNER/NAME comes from the Hugging Face
        hub or its cache: of a `revision` (branch, tag or commit), with a `token` for private ones, in another
        `cache_dir` than the hub's own. Raises InputError for what is none of these or holds damaged weights.

        `merge` works adapters into the weights they adapt: the same pixels sooner, but not what to fine-tune.
        """
        network, bolder = load_networks(name_or_path, revision, token, cache_dir)
        if merge:
            network = merge_adapters(network)
            bolder = None if bolder is None else merge_adapters(bolder)
        return cls(network, bolder=bolder).to(device, dtype)

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Fixer:
        """Moves the network; returns the fixer."""
        for network in (self.network, self.bolder, self._between):
            if network is None:
                continue
            network.to(device=device, dtype=dtype)
            if self.device.type == "cuda":  # tensor cores want channels last
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and model.safetensors (with the prompt's embedding) to a folder, made if missing, and
        bolder.safetensors where there are such weights.
        """
        return save_networks(self.network, self.bolder, Path(folder))

    def is_saved_in(self, folder: str | Path) -> bool:
        """Whether a folder holds this very fixer, in whatever layout."""
        try:
            held, bolder = load_networks(folder)
        except InputError:
            return False
        mine, its = (dataclasses.replace(c, lora_targets=sorted(c.lora_targets)) for c in (self.config, held.config))
        return mine == its and _same_weights(self.network, held) and _same_weights(self.bolder, bolder)

    def compile(self) -> None:
        """Has torch compile the network's parts when each is first used, anew for every size of image."""
        for part in ("encode", "decode", "_unet_pass"):
            for network in (self.network, self._between):
                if network is not None:
                    setattr(network, part, torch.compile(getattr(network, part)))

    @property
    def config(self) -> FixerConfig:
        return self.network.config

    @property
    def licence(self) -> str:
        """Terms of the weights, one sentence or a licence's name, to be shown to whoever uses them."""
        return self.config.licence

    @property
    def device(self) -> torch.device:
        return self.network.prompt.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.prompt.dtype

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        references: Tensor | ReferenceEncoding | RegisteredPhotos | None = None,
        opacity: Tensor | None = None,
        visibility: Tensor | None = None,
        fill_seed: int | None = None,
        correspondence: Tensor | None = None,
        boldness: float = 0.0,
    ) -> Tensor:
        """The clean views of degraded renders, of the same shape, device and dtype (of uint8 float32), in [0, 1].

        Raw references are encoded once for all calls in which the same pixels come again, as long as they are among
        those seen last.

        Args:
            images: (B, 3, H, W) in [0, 1], or uint8, any size.
            references: (B, V, 3, H, W) in [0, 1], aligned or as the photos are as `config.references` says, any number
                of them; or encoded ones, which then stand beside every image; or aligned ones as registered photos,
                which bring their own visibility and are sampled window by window; or None.
            opacity: (B, 1, H, W) the renders' accumulated opacity in [0, 1], or None for full.
            visibility: (B, V, 1, H, W) in [0, 1], where aligned references are believable, or None for everywhere;
                where none is, and without references, the render's tone is kept.
            fill_seed: seed of the noise that takes the place of what was not seen (opacity); None: as `config` says,
                with seed 0. Networks with aligned references have no such noise.
            correspondence: (B, V, 3, H, W) which places of the references the images' pixels show, as
                `correspondence.correspond` makes it, for networks whose `config.references` is geometry; without it
                they do what they can, and `notice` is told once. Others do not look at it.
            boldness: in [0, 1], how far the weights are those of `bolder` (a mean of both networks' weights: WiSE-FT,
                Wortsman et al., CVPR 2022). Fixers that have none do not look at it.

        Raises ValueError when the shapes do not belong together.
        """
        if isinstance(references, ReferenceEncoding):
            references = references.photos.expand(images.shape[0], *references.photos.shape)
        _check_shapes(images, references, opacity, visibility, correspondence)
        if self.config.references != "geometry":
            correspondence = None
        elif correspondence is None and references is not None and references.shape[1] and not self._told:
            self._told = True
            self.notice(
                "This fixer looks up references by depth and cameras, which are not known here: it goes on without. "
                "difix enhance of a run knows them, and so does difix fix with the --scene that images are of, "
                "where its seed points show enough."
            )
        noise = self._noise(images, opacity, fill_seed)
        network = self._weighted(boldness)
        while True:
            side = self.tile or TILE.get(self.device.type, TILE["cpu"])
            try:
                fixed = self._tiled(network, images, references, opacity, visibility, noise, correspondence, side)
                return self._toned(images, fixed, references, visibility, opacity)
            except (RuntimeError, MemoryError) as error:
                side = min(side, max(images.shape[-2:]))
                if not out_of_memory(error) or (side <= SMALLEST_TILE and images.shape[0] == 1):
                    raise
            # outside the handler: the traceback would hold the tensors that were too many
            self._held.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if images.shape[0] > 1:
                return torch.cat(
                    [
                        self._one(i, images, references, opacity, visibility, fill_seed, correspondence, boldness)
                        for i in range(len(images))
                    ]
                )
            self.tile = max(side // 2, SMALLEST_TILE)
            self.notice(f"The memory is too small for {side} pixels at a time; going on in tiles of {self.tile}.")

    @torch.no_grad()
    def encode_references(self, photos: Tensor) -> ReferenceEncoding:
        """Encodes references as the photos are, (V, 3, H, W) in [0, 1], now, for images of the same size.

        Raises ValueError for networks with aligned references, which need their pixels.
        """
        if not self.config.takes_photos:
            raise ValueError("references aligned with an image belong to that image; there is nothing to encode once")
        if photos.ndim != 4 or photos.shape[1] != 3:
            raise ValueError(f"photos must be (V, 3, H, W), not {tuple(photos.shape)}")
        for window in self._windows(photos):
            self._encoded(window.of(photos[None]))
        return ReferenceEncoding(photos)

    def second_opinion(
        self,
        images: Tensor,
        references: Tensor | RegisteredPhotos | None = None,
        opacity: Tensor | None = None,
        visibility: Tensor | None = None,
        fill_seed: int | None = None,
        correspondence: Tensor | None = None,
    ) -> Tensor:
        """Another fix of the same renders, made of everything mirrored and mirrored back; arguments as in a call.

        Where it differs from the first, the fixer has guessed. Where the render's own detail stays, both have it.
        """
        opacity, visibility = (None if x is None else x.flip(-1) for x in (opacity, visibility))
        if isinstance(references, RegisteredPhotos):
            beside: Tensor | RegisteredPhotos | None = references.mirrored()
        else:
            beside = None if references is None else references.flip(-1)
        if correspondence is not None:
            correspondence = mirrored(correspondence)
        return self(images.flip(-1), beside, opacity, visibility, fill_seed, correspondence).flip(-1)

    def _one(
        self,
        i: int,
        images: Tensor,
        references: Tensor | RegisteredPhotos | None,
        opacity: Tensor | None,
        visibility: Tensor | None,
        fill_seed: int | None,
        correspondence: Tensor | None,
        boldness: float,
    ) -> Tensor:
        """The i-th sample alone, (1, 3, H, W)."""
        others = (opacity, visibility, correspondence)
        opacity, visibility, correspondence = (None if x is None else x[i : i + 1] for x in others)
        if isinstance(references, RegisteredPhotos):
            beside: Tensor | RegisteredPhotos | None = references[i]
        else:
            beside = None if references is None else references[i : i + 1]
        return self(images[i : i + 1], beside, opacity, visibility, fill_seed, correspondence, boldness)

    @torch.no_grad()
    def _weighted(self, boldness: float) -> FixerNetwork:
        """The network whose weights are so far those of the bolder one."""
        if self.bolder is None or self._between is None or boldness <= 0:
            return self.network
        for here, careful, bold in zip(
            self._between.parameters(), self.network.parameters(), self.bolder.parameters(), strict=True
        ):
            torch.lerp(careful, bold, boldness, out=here)
        return self._between

    def _tiled(
        self,
        network: FixerNetwork,
        images: Tensor,
        references: Tensor | RegisteredPhotos | None,
        opacity: Tensor | None,
        visibility: Tensor | None,
        noise: Tensor | None,
        correspondence: Tensor | None,
        side: int,
    ) -> Tensor:
        height, width = images.shape[-2:]
        parts = windows(height, width, side, self.config.multiple)
        kind = images.dtype if images.is_floating_point() else torch.float32
        blurred = None
        if isinstance(references, RegisteredPhotos):
            aligned, seen = references.small(self.device)
            blurred = blur(averaged(images, aligned.shape[-2:]).to(self.device), aligned, seen)
        if len(parts) == 1:
            whole = self._fixed(
                network, parts[0], images, references, opacity, visibility, noise, correspondence, blurred
            )
            return whole.to(images.device, kind)
        total = torch.zeros_like(images, dtype=torch.float32)
        # of the rows from the windows' top on: those above are done
        weights = total.new_zeros((parts[0].height, width))
        for done, (window, after) in enumerate(zip(parts, [*parts[1:], None], strict=True), start=1):
            fixed = self._fixed(
                network, window, images, references, opacity, visibility, noise, correspondence, blurred
            )
            weight = fade(window, height, width, weights)
            window.of(total).add_(fixed.to(total).mul_(weight))  # type: ignore[union-attr]
            window._replace(top=0).of(weights).add_(weight)  # type: ignore[union-attr]
            del fixed  # or it would be there beside the next
            rows = (height if after is None else after.top) - window.top
            if rows:
                total[..., window.top : window.top + rows, :].div_(weights[:rows])
                weights = torch.cat([weights[rows:], torch.zeros_like(weights[:rows])])
            self.tile_done(done, len(parts))
        return total.to(kind)

    def _toned(
        self,
        images: Tensor,
        fixed: Tensor,
        references: Tensor | RegisteredPhotos | None,
        visibility: Tensor | None,
        opacity: Tensor | None,
    ) -> Tensor:
        """What no aligned reference shows, in the render's own tone."""
        if self.config.references != "aligned":
            return fixed
        if references is None or not references.shape[1]:
            return keep_unseen_tone(images, fixed, None, opacity)
        if isinstance(references, RegisteredPhotos):
            visibility = references.visibility()
        return fixed if visibility is None else keep_unseen_tone(images, fixed, visibility, opacity)

    def _fixed(
        self,
        network: FixerNetwork,
        window: Window,
        images: Tensor,
        references: Tensor | RegisteredPhotos | None,
        opacity: Tensor | None,
        visibility: Tensor | None,
        noise: Tensor | None,
        correspondence: Tensor | None,
        blurred: Tensor | None,
    ) -> Tensor:
        """The clean pixels of one window; `blurred` as `keep_known_detail` takes it."""
        image, opacity, visibility = (self._prepared(window.of(x)) for x in (images, opacity, visibility))
        beside: Tensor | EncodedReferences | None = None
        registered = None
        if isinstance(references, RegisteredPhotos):
            registered = references.cut(window, self.device)
            beside, visibility = map(self._prepared, registered)
        elif references is not None and references.shape[1]:
            cut = window.of(references)
            beside = self._encoded(cut) if self.config.takes_photos else self._prepared(cut)
        if noise is not None:
            in_latents = Window(*(-(-x // self.config.multiple) for x in window))
            noise = in_latents.of(noise).to(image)  # type: ignore[union-attr]
        if correspondence is not None:
            correspondence = self._places(window, correspondence)
        fixed = network(image, beside, opacity, visibility, noise, correspondence)
        fixed = fixed[..., : window.height, : window.width].clamp(0, 1)
        if registered is not None and blurred is not None:
            shown = window.of(images)  # as it came: the network's own copy may have fewer digits
            assert shown is not None
            shown = in_unit(shown).to(self.device)
            fixed = keep_known_detail(shown, fixed, *registered, max(images.shape[-2:]), blurred)
        return fixed

    def _windows(self, images: Tensor) -> list[Window]:
        side = self.tile or TILE.get(self.device.type, TILE["cpu"])
        height, width = images.shape[-2:]
        return windows(height, width, side, self.config.multiple)

    def _places(self, window: Window, correspondence: Tensor) -> Tensor:
        """A window's places in references cut to it; those outside, and those of the padding, are not known."""
        cut = cropped(correspondence, window.top, window.left, window.height, window.width).to(self.device).float()
        return padded(cut, self.config.multiple)

    def _encoded(self, references: Tensor | None) -> EncodedReferences:
        """References as the photos are, (B, V, 3, H, W), each distinct one encoded once and kept for further calls."""
        assert references is not None
        if (state := _weights_state(self.network)) != self._held_of:
            self._held.clear()
            self._held_of = state
        # a few pixels of each find it, all of them decide; all photos' are looked at together
        stride = max(1, references[0, 0].numel() // 256)
        pixels = torch.stack([photo.flatten()[::stride] for photo in references.flatten(0, 1)]).tolist()
        found = [self._encoded_photo(*one) for one in zip(references.flatten(0, 1), pixels, strict=True)]
        rows = [found[i : i + references.shape[1]] for i in range(0, len(found), references.shape[1])]
        return EncodedReferences.joined([EncodedReferences.joined(row, 1) for row in rows], 0)

    def _encoded_photo(self, photo: Tensor, pixels: list[float]) -> EncodedReferences:
        """(3, H, W) and a few of its pixels → its encoding with B = V = 1."""
        key = (photo.shape, photo.dtype, str(photo.device), tuple(pixels))
        held = self._held.get(key)
        if held is not None and torch.equal(held[0], photo):
            self._held.move_to_end(key)
            return held[1]
        encoded = self.network.encode_references(self._padded(photo[None, None]))
        self._held[key] = (photo.clone(), encoded)
        while len(self._held) > 1 and sum(_nbytes(p) + e.nbytes for p, e in self._held.values()) > _HELD_BYTES:
            self._held.popitem(last=False)
        return encoded

    def _noise(self, images: Tensor, opacity: Tensor | None, seed: int | None) -> Tensor | None:
        """(B, c, h, w) standard normal for the whole image: its windows then agree, and so do its batches."""
        if opacity is None or not self.config.takes_photos or (seed is None and not self.config.fill_unseen):
            return None
        size = [-(-x // self.config.multiple) for x in images.shape[-2:]]
        generator = torch.Generator().manual_seed(seed or 0)
        noise = torch.randn(1, self.config.vae["latent_channels"], *size, generator=generator)
        return noise.expand(images.shape[0], -1, -1, -1)

    def _prepared(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else self._padded(values)

    def _padded(self, values: Tensor) -> Tensor:
        """On the network's device, padded below and to the right to what the network takes."""
        kind = self.dtype if values.is_floating_point() else values.dtype
        values = in_unit(values.to(device=self.device, dtype=kind)).to(self.dtype)
        height, width = values.shape[-2:]
        multiple = self.config.multiple
        padding = (0, -width % multiple, 0, -height % multiple)
        if not any(padding):
            return values
        # a mirror cannot show more than there is
        mode = "reflect" if padding[1] < width and padding[3] < height else "replicate"
        flat = values.reshape(-1, *values.shape[-3:])
        if flat.shape[0] == 0:
            return values.new_zeros((*values.shape[:-2], height + padding[3], width + padding[1]))
        return F.pad(flat, padding, mode=mode).reshape(*values.shape[:-2], height + padding[3], width + padding[1])


def new_small_fixer(
    size: str = "small", seed: int = 0, references: Literal["aligned", "geometry"] = "aligned"
) -> Fixer:
    """A small fixer with random weights, of one of `SMALL_SIZES`, to be trained from scratch, that takes references
    aligned with the render or looks them up by depth and cameras.
    """
    if size not in SMALL_SIZES:
        raise unknown("small fixer", size, SMALL_SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Fixer(FixerNetwork(small_config(size, references)))


def _same_weights(ours: FixerNetwork | None, theirs: FixerNetwork | None) -> bool:
    """Whether two networks of one configuration, the second of them in float32 on the CPU, hold the same numbers."""
    if ours is None or theirs is None:
        return ours is theirs
    own, others = ours.state_dict(), theirs.state_dict()
    return all(torch.equal(own[name].cpu().float(), others[name]) for name in own)


def _weights_state(network: FixerNetwork) -> tuple:
    """Changes when weights do: encodings made before are then worthless."""
    parameters = list(network.parameters())
    # in one look at the device: each empties a GPU's queue
    sample = torch.stack([p.flatten()[0] for p in parameters[:: max(1, len(parameters) // 8)]]).tolist()
    return (sum(p._version for p in parameters), network.prompt.dtype, network.prompt.device, *sample)


def _nbytes(values: Tensor) -> int:
    return values.numel() * values.element_size()


def _check_shapes(
    images: Tensor,
    references: Tensor | RegisteredPhotos | None,
    opacity: Tensor | None,
    visibility: Tensor | None,
    correspondence: Tensor | None,
) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
    batch, _, height, width = images.shape
    if references is not None and (
        len(references.shape) != 5 or (references.shape[0], *references.shape[2:]) != (batch, 3, height, width)
    ):
        raise ValueError(f"references must be (B, V, 3, H, W) like the images, not {tuple(references.shape)}")
    if opacity is not None and opacity.shape != (batch, 1, height, width):
        raise ValueError(f"opacity must be (B, 1, H, W) like the images, not {tuple(opacity.shape)}")
    views = 0 if references is None else references.shape[1]
    if correspondence is not None and correspondence.shape != (batch, views, 3, height, width):
        raise ValueError(
            f"correspondence must be (B, V, 3, H, W) like the references, not {tuple(correspondence.shape)}"
        )
    if visibility is not None and visibility.shape != (batch, views, 1, height, width):
        raise ValueError(f"visibility must be (B, V, 1, H, W) like the references, not {tuple(visibility.shape)}")
