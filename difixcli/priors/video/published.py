"""Published video models through diffusers' own pipelines, as they are: what they are shown, and what is taken of it.

- A model of the first and the last frame (Wan's FLF2V, `WanImageToVideoPipeline`): both photos, a constant prompt.
- A model of the first frame alone (Stable Video Diffusion, `StableVideoDiffusionPipeline`) is not told the last photo.
  It films from both ends at once: one film starts at the first photo, one at the last photo and runs backwards; after
  every denoising step both are set to one, from all of the first at its photo to all of the second at its own
  (time reversal fusion, Feng et al., ECCV 2024, arXiv 2403.14611, with linear weights):

      x_t(s) = (1 − s)·x_t^forward(s) + s·x_t^backward(1 − s),    s the place on the way from 0 to 1.

Neither is told cameras: their pictures lead from one photo to the other, but not along the span's own path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difixcli.errors import InputError, out_of_memory
from difixcli.images import resized
from difixcli.priors.video.span import Span
from difixcli.runs import read_json
from difixcli.torchvision_cure import cure

PROMPT = "A steady camera moves smoothly through a motionless scene."
NEGATIVE_PROMPT = "motion of objects, people, blur, flicker, text, overexposure"
WAN, SVD = "WanImageToVideoPipeline", "StableVideoDiffusionPipeline"
KNOWN = (WAN, SVD)
# Pixels of a picture, as many as it was trained with at its smaller size: far fewer are noise to it.
_AREA = {WAN: 480 * 832, SVD: 576 * 1024}
# What they compute in on a GPU, as their makers show it. Wan's pictures are encoded and decoded in single precision.
_HALF = {WAN: torch.bfloat16, SVD: torch.float16}
_SINGLE = {WAN: ("vae", "image_encoder"), SVD: ()}
_MOST_TOKENS = 512  # of the prompt, the pipeline's own number


def open_published(
    folder: Path | None, name: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> PublishedFilm:
    """The model in a folder of diffusers' layout, or (folder None) of a name on the hub, from its cache or the network.

    Without a `dtype` it computes in half precision on a GPU, in the one that its makers use, and else in single.

    Raises InputError for one that is not there or damaged, of a kind that is not known, or not told the last photo.
    """
    index = _index(folder, name)
    kind = _known_kind(index, name)
    if folder is not None:
        check_parts(folder, index, name)
    cure()
    import diffusers

    source = str(folder or name)
    dtype = dtype or (_HALF[kind] if device == "cuda" else torch.float32)
    precision = {"default": dtype, **dict.fromkeys(_SINGLE[kind], torch.float32)}
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(
            source, torch_dtype=precision, use_safetensors=True, local_files_only=folder is not None
        )
    except Exception as error:  # diffusers, transformers and the hub raise whatever their parsers do
        if out_of_memory(error):
            raise
        raise _unreadable(folder, name, error) from error
    pipeline.set_progress_bar_config(disable=True)
    if kind == WAN:
        check_last_frame(pipeline, name)
    return PublishedFilm(pipeline.to(device), _AREA[kind])


def download(name: str) -> Path:
    """The files of a model on the hub that `open_published` reads, in the hub's cache; those that are there already are
    not fetched again.

    Raises InputError for one of a kind that is not known, and without a network.
    """
    _known_kind(_index(None, name), name)
    cure()
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # diffusers and the hub's client raise errors of several libraries
        raise _unreadable(None, name, error) from error


def check_parts(folder: Path, index: dict[str, Any], name: str) -> None:
    """InputError where a part that the model's index lists is missing in its folder."""
    wanted = [part for part, value in index.items() if isinstance(value, list) and value[0] is not None]
    for part in sorted(wanted):
        if not (folder / part).is_dir():
            raise InputError(f"The video model {name} lacks its folder {part}; fetch the whole model again.")


def check_last_frame(pipeline: Any, name: str) -> None:
    """InputError for a model of Wan's family that does not look at the last frame it is given."""
    transformer = pipeline.transformer or pipeline.transformer_2
    # Wan 2.1 is told of images by embeddings, of two at two positions; 2.2 by the latents' mask, but for the small one
    first_only = transformer.config.image_dim is not None and transformer.config.pos_embed_seq_len is None
    if pipeline.config.expand_timesteps or first_only:
        raise InputError(
            f"The video model {name} ignores the last photo: it continues the first one alone. Give one of first and "
            "last frame, such as Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers."
        )


class PublishedFilm:
    """A pipeline of `KNOWN`, asked for the way between two photos. `area` is the number of pixels it works at."""

    def __init__(self, pipeline: Any, area: int, steps: int | None = None) -> None:
        self.pipeline, self.area = pipeline, area
        self.steps = {} if steps is None else {"num_inference_steps": steps}

    @torch.no_grad()
    def film(self, span: Span, seed: int) -> np.ndarray:
        """(T, H, W, 3) float32 in [0, 1], pictures at equal steps on the way from the first photo to the last.

        Raises InputError for fewer than two pictures and where the memory is too small.
        """
        count = len(span.cameras)
        if count < 2:
            raise InputError("A film leads from one photo to another; ask for two pictures at least.")
        size = working_size(span.photos.shape[1:3], self.area, self._multiple())
        ends = [_picture(resized(np.asarray(photo, np.float32), size[1], size[0], "bicubic")) for photo in span.photos]
        film = self._between if type(self.pipeline).__name__ == WAN else self._from_both_ends
        try:
            frames = film(ends[0], ends[1], count, seed)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise InputError(
                f"The memory is too small for {count} pictures of {size[1]}×{size[0]} from this video model; ask for "
                "fewer with --frames, or take a smaller model."
            ) from error
        chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
        height, width = span.photos.shape[1:3]
        made = [resized(np.asarray(frames[i], np.float32), width, height, "bicubic") for i in chosen]
        return np.clip(np.stack(made), 0, 1)

    def _multiple(self) -> int:
        """Sides of pictures divide by this."""
        if type(self.pipeline).__name__ == WAN:
            transformer = self.pipeline.transformer or self.pipeline.transformer_2
            return int(self.pipeline.vae_scale_factor_spatial * max(transformer.config.patch_size[1:]))
        levels = len(self.pipeline.unet.config.block_out_channels) - 1
        return math.lcm(8, int(self.pipeline.vae_scale_factor * 2**levels))  # 8 is what the pipeline asks for

    def _between(self, first: Image.Image, last: Image.Image, count: int, seed: int) -> np.ndarray:
        """(N, h, w, 3) of a model of both frames, N the least number it can make that is no less than `count`."""
        pipeline = self.pipeline
        step = pipeline.vae_scale_factor_temporal
        prompt, negative = (self._embedded(text) for text in (PROMPT, NEGATIVE_PROMPT))
        found = pipeline(
            image=first,
            last_image=last,
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            height=first.height,
            width=first.width,
            num_frames=-(-(count - 1) // step) * step + 1,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **self.steps,
        )
        return np.asarray(found.frames[0])

    def _embedded(self, text: str) -> Tensor:
        """(1, L, D) of a prompt, as the pipeline embeds one that needs no mending of broken text."""
        pipeline = self.pipeline
        told = pipeline.tokenizer(
            [text], padding="max_length", max_length=_MOST_TOKENS, truncation=True, return_tensors="pt"
        )
        ids, mask = (x.to(pipeline.text_encoder.device) for x in (told.input_ids, told.attention_mask))
        hidden = pipeline.text_encoder(ids, mask).last_hidden_state
        return hidden * (mask > 0)[..., None]

    def _from_both_ends(self, first: Image.Image, last: Image.Image, count: int, seed: int) -> np.ndarray:
        """(count, h, w, 3) of a model of the first frame alone."""
        pipeline = self.pipeline
        height, width = (side // pipeline.vae_scale_factor for side in (first.height, first.width))
        generator = torch.Generator().manual_seed(seed)
        forward = torch.randn(count, pipeline.unet.config.in_channels // 2, height, width, generator=generator)
        forward = forward.to(pipeline.unet.device, pipeline.unet.dtype)
        found = pipeline(
            image=[first, last],
            height=first.height,
            width=first.width,
            num_frames=count,
            generator=generator,
            latents=torch.stack([forward, forward.flip(0)]),
            callback_on_step_end=joins_ends(count),
            output_type="np",
            **self.steps,
        )
        return np.asarray(found.frames[0])


def joins_ends(count: int) -> Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]:
    """What a pipeline calls after every step of denoising the latents (2, count, c, h, w) of a film from the first
    photo and of one from the last: makes them one film and its reverse.
    """

    def join(pipeline: Any, step: int, time: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        forward, backward = given["latents"]
        place = torch.linspace(0, 1, count, device=forward.device, dtype=forward.dtype)[:, None, None, None]
        joined = torch.lerp(forward, backward.flip(0), place)
        return {"latents": torch.stack([joined, joined.flip(0)])}

    return join


def working_size(size: tuple[int, int], area: int, multiple: int) -> tuple[int, int]:
    """Height and width of about the same shape as `size`, of about `area` pixels, that divide by `multiple`."""
    height, width = size
    scale = (area / (height * width)) ** 0.5
    sides = [max(1, round(side * scale / multiple)) * multiple for side in (height, width)]
    return sides[0], sides[1]


def _picture(photo: np.ndarray) -> Image.Image:
    """(H, W, 3) in [0, 1] as the pipelines want it; their image encoders take no tensors."""
    return Image.fromarray((np.clip(photo, 0, 1) * 255 + 0.5).astype(np.uint8))


def _known_kind(index: dict[str, Any], name: str) -> str:
    """The pipeline that a model's index names, one of `KNOWN`; InputError for another."""
    kind = index.get("_class_name")
    if kind not in KNOWN:
        raise InputError(
            f"The model {name} is made for {kind}, which is not known as a video model of two photos; there are "
            f"{WAN} (first and last frame) and {SVD} (filmed from both ends)."
        )
    return str(kind)


def _index(folder: Path | None, name: str) -> dict[str, Any]:
    """What the model says of itself."""
    if folder is not None:
        values = read_json(folder / "model_index.json", dict)
        return dict(values)
    from huggingface_hub import snapshot_download

    try:
        # of a single file the hub's client would ask six times, 23 seconds in all, before it says there is no network
        file = Path(snapshot_download(name, allow_patterns="model_index.json")) / "model_index.json"
    except Exception as error:  # the hub's client raises errors of several libraries for a missing network
        raise _unreadable(None, name, error) from error
    return dict(read_json(file, dict))


def _unreadable(folder: Path | None, name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    if folder is not None:
        return InputError(f"The video model {name} cannot be read ({reason}); fetch it again.")
    return InputError(
        f"The video model '{name}' is neither in the Hugging Face cache nor reachable on the hub: check the name and "
        f"the network, or give bundled or a local folder ({type(error).__name__})."
    )
