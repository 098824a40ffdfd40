"""Published video models: small copies with random weights give what diffusers' own pipelines give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from pretend_cuda import pretend_cuda
from test_video_prior import span
from torch import nn

from difixcli.errors import InputError
from difixcli.images import resized
from difixcli.priors.video import published
from difixcli.priors.video.opening import open_video_model
from difixcli.priors.video.published import NEGATIVE_PROMPT, PROMPT, PublishedFilm, joins_ends, working_size
from difixcli.priors.video.span import VideoModel

AREA = 32 * 48
STEPS = 2


def wan(expand: bool = False, positions: int | None = 2 * 5, image_dim: int | None = 4) -> Any:
    """A pipeline of Wan's first-and-last-frame model."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    torch.manual_seed(0)
    words = sorted({*PROMPT.split(), *NEGATIVE_PROMPT.split()})
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", *words])}, "<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", unk_token="<unk>")
    text = UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vision = CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        intermediate_size=16, patch_size=16,
    )  # fmt: skip
    return WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessor(crop_size=32, size=32),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16,
            text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32, image_dim=image_dim, pos_embed_seq_len=positions,
        ).eval(),
        expand_timesteps=expand,
    )  # fmt: skip


def svd() -> Any:
    """A pipeline of Stable Video Diffusion."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=4, image_size=224,
        intermediate_size=37, patch_size=112,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4, layers_per_block=1,
        ).eval(),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        unet=UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=8, out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
            num_attention_heads=8, projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
        ).eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            interpolation_type="linear", timestep_type="continuous", timestep_spacing="leading", steps_offset=1,
            use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def svd_pipeline() -> Any:
    return svd()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, svd_pipeline: Any) -> Path:
    folder = tmp_path_factory.mktemp("published")
    wan().save_pretrained(folder / "wan")
    svd_pipeline.save_pretrained(folder / "svd")
    return folder


def small(folder: Path) -> PublishedFilm:
    """The model in a folder, as it is opened, at a size and number of steps for tests."""
    found = open_video_model(folder)
    assert isinstance(found, PublishedFilm) and isinstance(found, VideoModel)
    return PublishedFilm(found.pipeline, AREA, STEPS)


def ends(of: Any, size: tuple[int, int]) -> list[Image.Image]:
    made = [resized(photo, size[1], size[0], "bicubic") for photo in of.photos]
    return [Image.fromarray((np.clip(photo, 0, 1) * 255 + 0.5).astype(np.uint8)) for photo in made]


def at_size(frames: np.ndarray, of: Any) -> np.ndarray:
    height, width = of.photos.shape[1:3]
    return np.clip(np.stack([resized(np.asarray(f, np.float32), width, height, "bicubic") for f in frames]), 0, 1)


def test_first_and_last_frame_through_wans_pipeline(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown = small(folders / "wan"), span(5)
    made = model.film(shown, 3)
    assert made.shape == (5, *shown.photos.shape[1:]) and made.dtype == np.float32
    # the pipeline's own way with prompts, but for the library that mends broken text
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", lambda text: text)
    first, last = ends(shown, (32, 48))
    wanted = wan()(
        image=first, last_image=last, prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, height=32, width=48,
        num_frames=5, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.array_equal(made, at_size(wanted, shown))
    assert np.array_equal(model.film(shown, 3), made) and not np.array_equal(model.film(shown, 4), made)


def test_the_last_photo_counts_in_the_first_picture(folders: Path) -> None:
    model, shown = small(folders / "wan"), span(4)
    four = model.film(shown, 0)
    other = span(4)
    other.photos[1] = 1 - other.photos[1]
    assert len(four) == 4 and not np.array_equal(model.film(other, 0)[0], four[0])


def test_stable_video_diffusion_is_filmed_from_both_ends(folders: Path, svd_pipeline: Any) -> None:
    model, shown = small(folders / "svd"), span(4)
    made = model.film(shown, 3)
    assert made.shape == (4, *shown.photos.shape[1:])
    # two films of the pipeline's own denoising, one picture list each, joined after every step
    first, last = ends(shown, (32, 48))
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(4, 4, 16, 24, generator=draw)
    wanted = svd_pipeline(
        image=[first, last], height=32, width=48, num_frames=4, num_inference_steps=STEPS, generator=draw,
        latents=torch.stack([noise, noise.flip(0)]), output_type="np", callback_on_step_end=joins_ends(4),
    ).frames  # fmt: skip
    assert np.array_equal(made, at_size(wanted[0], shown))
    other = span(4)
    other.photos[1] = 1 - other.photos[1]
    apart = np.abs(model.film(other, 3) - made).mean(axis=(1, 2, 3))
    assert apart[-1] > apart[0] and apart.min() > 0


@pytest.mark.parametrize(
    "name, used",
    [
        ("wan", {"transformer": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}),
        ("svd", {"unet": torch.float16, "image_encoder": torch.float16, "vae": torch.float16}),
    ],
)
def test_on_a_gpu_they_compute_in_half_precision(
    folders: Path, name: str, used: dict[str, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the half precision that its makers use; the same film, but for what that rounds."""

    def evenly_timed(film: PublishedFilm) -> PublishedFilm:
        """Without times of logarithms, which a device that is pretended cannot read."""
        if name == "svd":
            before = film.pipeline.scheduler
            film.pipeline.scheduler = type(before).from_config(before.config, timestep_type="discrete")
        return PublishedFilm(film.pipeline, AREA, STEPS)

    shown = span(4)
    single = evenly_timed(small(folders / name)).film(shown, 3)
    seen: dict[str, set[torch.dtype]] = {}
    with monkeypatch.context() as patched:  # transformers reads no weights where the device is pretended
        patched.setattr(DiffusionPipeline, "to", lambda pipeline, device: pipeline)
        found = open_video_model(folders / name, device="cuda")
    assert isinstance(found, PublishedFilm)
    with pretend_cuda():
        found.pipeline.to("cuda")
        for part in used:
            for layer in getattr(found.pipeline, part).modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                    layer.register_forward_pre_hook(
                        lambda layer, given, part=part: seen.setdefault(part, set()).add(given[0].dtype)
                    )
        monkeypatch.setattr(type(found.pipeline), "_execution_device", torch.device("cuda"))
        made = evenly_timed(found).film(shown, 3)
    for part, dtype in used.items():
        assert dtype in seen[part] <= {dtype, torch.float32}  # of Wan's times, and of SVD's photos as they are encoded
    assert made.dtype == np.float32 and made.shape == single.shape
    assert 0 < np.abs(made - single).mean() < 0.02


def test_ends_are_joined_by_their_places() -> None:
    draw = torch.Generator().manual_seed(0)
    forward, backward = torch.randn(2, 5, 4, 2, 2, generator=draw)
    joined = joins_ends(5)(None, 0, None, {"latents": torch.stack([forward, backward])})["latents"]
    for i in range(5):
        wanted = (1 - i / 4) * forward[i] + i / 4 * backward[4 - i]
        assert torch.allclose(joined[0, i], wanted, atol=1e-6)
        assert torch.equal(joined[1, 4 - i], joined[0, i])


def test_with_one_end_alone_it_is_the_pipelines_own_film(
    folders: Path, svd_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the joining, the first of the two films is what the pipeline makes of the first photo and this noise."""
    model, shown = small(folders / "svd"), span(4)
    monkeypatch.setattr(published, "joins_ends", lambda count: None)
    made = model.film(shown, 3)
    first, last = ends(shown, (32, 48))
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(4, 4, 16, 24, generator=draw)
    pair = svd_pipeline(
        image=[first, last], height=32, width=48, num_frames=4, num_inference_steps=STEPS, generator=draw,
        latents=torch.stack([noise, noise.flip(0)]), output_type="np",
    ).frames  # fmt: skip
    assert np.array_equal(made, at_size(pair[0], shown))


def test_pictures_are_made_at_the_models_own_size() -> None:
    assert working_size((480, 832), 480 * 832, 16) == (480, 832)
    height, width = working_size((90, 120), 480 * 832, 16)
    assert height % 16 == width % 16 == 0 and abs(width / height - 4 / 3) < 0.05
    assert working_size((10, 1000), 256, 16)[0] == 16


def test_models_that_ignore_the_last_photo_are_named(tmp_path: Path) -> None:
    for name, kind in (("continuing", wan(positions=None)), ("small-2.2", wan(expand=True))):
        kind.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} ignores the last photo"):
            open_video_model(tmp_path / name)


def test_other_pipelines_and_missing_weights_are_told(tmp_path: Path, folders: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXImageToVideoPipeline"}))
    with pytest.raises(InputError, match="CogVideoXImageToVideoPipeline, which is not known"):
        open_video_model(folder)
    broken = Path(shutil.copytree(folders / "svd", tmp_path / "svd"))
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        open_video_model(broken)
    shutil.rmtree(broken / "unet")
    with pytest.raises(InputError, match="lacks its folder unet"):
        open_video_model(broken)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="neither in the Hugging Face cache nor reachable"):
        open_video_model("nobody/no-such-video-model")
