"""The fixer's network: SD-Turbo's architecture from diffusers' own classes, at any size.

Difix (Wu et al., CVPR 2025, arXiv 2503.01774): one U-Net step at time step τ = 200 of 1000 turns the latent of a
degraded render into that of a clean view, helped by reference views that take part in self-attention. With latent
z = s·E(x), noise level ᾱ of the step and the constant prompt's embedding c

    ẑ₀ = (z − √(1−ᾱ)·ε̂(z, t, c)) / √ᾱ,    x̂ = D(ẑ₀/s, skips of E).

The same class with `references: aligned` is our small fixer: references lie pixel on pixel with the render, gates
choose between the views at every skip, and the output is a blend of the views plus a small residual (see blending).
With `references: geometry` references are raw, and attended to where geometry says they are (see geometry); a small
one of that kind adds to its render (`adds_to_render`), which so little of a decoder could not paint anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.fixer.blending import BlendHead, ReferenceGate
from difixcli.fixer.convolution import use_fast_convolutions
from difixcli.fixer.geometry import GeometryAttention, Places, places_by_count, use_geometry
from difixcli.torchvision_cure import cure

ADAPTER = "vae_skip"
Memory = tuple[Tensor, ...]
"""Keys and values of a self-attention; and what came into its block, where geometry reads that."""
LORA_ALPHA = 8  # peft's default, which the release kept: the adapters' scale is 8 / rank
SKIP_INIT = 1e-5
_LOG_VARIANCE = (-30.0, 20.0)  # what diffusers limits the encoder's to
IMAGE_CHANNELS = 5  # what an aligned network's encoder sees of a view: RGB, visibility, and whether it is a reference


@dataclass(frozen=True)
class FixerConfig:
    """Everything about a fixer but its numbers; stored as config.json beside them."""

    unet: dict[str, Any]
    """Keyword arguments of diffusers' UNet2DConditionModel."""
    vae: dict[str, Any]
    """Keyword arguments of diffusers' AutoencoderKL."""
    references: Literal["raw", "aligned", "geometry"] = "raw"
    """How references are wanted: as the photos are, reprojected into the render's view, or as the photos are and beside
    them which place of theirs each pixel of the render shows."""
    views: int = 1
    """How many references it was trained with; any other number works."""
    reference_attention: Literal["mutual", "one-way"] = "mutual"
    """Who attends to whom in self-attention: all views to all, or the references to themselves alone, so that their
    keys and values too are the same for every render. Published weights are mutual."""
    fill_unseen: bool = False
    """Whether latents are mixed with noise where the render's opacity says that nothing was seen (not with
    aligned references): z = O·z + (1−O)·ε with the opacity O max-pooled to the latents' size (ArtiFixer, 2026)."""
    timestep: int = 199
    """Index of the one denoising step."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    """Ends of the scaled-linear noise schedule of 1000 steps."""
    prompt_tokens: int = 77
    """Length of the constant prompt's embedding, which is stored with the weights."""
    skip_scale: float = 1.0
    """γ, the factor of the encoder's skips; 0 leaves them out."""
    lora_rank: int = 0
    """Rank of the decoder's adapters; 0: there are none and the whole network trains."""
    lora_targets: list[str] = field(default_factory=list)
    """Modules of the VAE that have adapters."""
    pixel_unshuffle: int = 1
    """Space to depth by this factor before the encoder, and back behind the decoder (small networks only)."""
    feature_channels: int = 0
    """Channels of the decoder's full-resolution feature map for the blending head (aligned references only)."""
    hidden_channels: int = 16
    """Width of the gates and of the blending head (aligned references only)."""
    residual_limit: float = 0.25
    """Largest change of a pixel beyond the blend, or of the render's that is added to (small networks only)."""
    adds_to_render: bool = False
    """Whether the decoder gives what is added to the render in place of the image (not with aligned references)."""
    licence: str = "Apache-2.0"
    """Terms of the weights, to be shown when they are loaded."""

    @property
    def takes_photos(self) -> bool:
        """Whether references are wanted as the photos are, so that they are encoded once for all renders."""
        return self.references != "aligned"

    @property
    def is_small(self) -> bool:
        """Whether this is one of our small networks, which start from their render and train from scratch."""
        return self.references == "aligned" or self.adds_to_render

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def multiple(self) -> int:
        """Height and width the network takes are multiples of this; `Fixer` pads."""
        return self.pixel_unshuffle * 2 ** (len(self.vae["block_out_channels"]) - 1)


class MultiViewAttention:
    """Attention processor: self-attention sees the tokens of all views of a sample, cross-attention only its own.

    Hidden states come as (B·V, N, C) with `views` = V, given through `cross_attention_kwargs`. The weights are the
    plain network's, so V may be any number.

    With `one_way`, the first view still sees all, but the others only themselves. What it would see of them may then
    come from a pass over them alone: `record` collects keys and values layer by layer, `held` brings them, joined
    over a sample's references as (B, V·N, C).

    With `first_only`, the `last` layer lets the first view alone look: what the others would see goes nowhere.

    Blocks with `geometry` tell the `states` that came into them; with `places` of a sample's references (by the number
    of tokens) what geometry finds there is mixed in.
    """

    def __init__(self, last: bool = False) -> None:
        self.last = last

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        views: int = 1,
        one_way: bool = False,
        first_only: bool = False,
        record: list[Memory] | None = None,
        held: Iterator[Memory] | None = None,
        geometry: GeometryAttention | None = None,
        states: Tensor | None = None,
        places: Mapping[int, Places] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            keys, values = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            return attn.to_out[0](attend(attn.heads, attn.to_q(hidden_states), keys, values))
        queries, keys, values = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if record is not None:
            record.append((keys, values) if states is None else (keys, values, states))
        here = None if places is None else places[hidden_states.shape[1]]
        if held is not None:
            others = next(held)
            keys, values = torch.cat([keys, others[0]], dim=1), torch.cat([values, others[1]], dim=1)
            own = attn.to_out[0](attend(attn.heads, queries, keys, values))
            if geometry is None or here is None:
                return own
            return geometry(own, others[2].unflatten(1, (here.x.shape[1], -1)), here)
        if views == 1:
            return attn.to_out[0](attend(attn.heads, queries, keys, values))

        def joined(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, views)).flatten(1, 2)

        if not one_way:
            if first_only and self.last:
                first = attend(attn.heads, queries[::views], joined(keys), joined(values))
                mixed = attn.to_out[0](first)[:, None].expand(-1, views, -1, -1)
                return self._with_geometry(mixed, geometry, states, here)
            mixed = attend(attn.heads, joined(queries), joined(keys), joined(values))
            return self._with_geometry(attn.to_out[0](mixed.unflatten(1, (views, -1))), geometry, states, here)
        per_view = [x.unflatten(0, (-1, views)) for x in (queries, keys, values)]
        first = attend(attn.heads, per_view[0][:, 0], joined(keys), joined(values))
        rest = attend(attn.heads, *(x[:, 1:].flatten(0, 1) for x in per_view))
        mixed = torch.cat([first[:, None], rest.unflatten(0, (-1, views - 1))], dim=1)
        return self._with_geometry(attn.to_out[0](mixed), geometry, states, here)

    @staticmethod
    def _with_geometry(
        mixed: Tensor, geometry: GeometryAttention | None, states: Tensor | None, here: Places | None
    ) -> Tensor:
        """(B, V, N, C) of all views, the render's mixed with what geometry finds in the others, → (B·V, N, C)."""
        if geometry is not None and states is not None and here is not None:
            others = states.unflatten(0, mixed.shape[:2])[:, 1:]
            mixed = torch.cat([geometry(mixed[:, 0], others, here)[:, None], mixed[:, 1:]], dim=1)
        return mixed.flatten(0, 1)


def attend(heads: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, N, C) queries over (B, M, C) keys and values, C split into heads → (B, N, C)."""
    queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class EncodedReferences:
    """What a network needs of references that are as the photos are; they are never decoded.

    `latents` (B, V, c, h, w); `memory` what every self-attention needs of them, (B, V·N, C) each, of networks whose
    references attend only to themselves.
    """

    latents: Tensor
    memory: tuple[Memory, ...] = ()

    @staticmethod
    def joined(parts: Sequence[EncodedReferences], dim: int) -> EncodedReferences:
        """Several as one: samples (`dim` 0) or views of the same samples (`dim` 1)."""
        if len(parts) == 1:
            return parts[0]
        memory = tuple(
            tuple(torch.cat(parts_of, dim) for parts_of in zip(*layer, strict=True))
            for layer in zip(*(part.memory for part in parts), strict=True)
        )
        return EncodedReferences(torch.cat([part.latents for part in parts], dim), memory)

    @property
    def nbytes(self) -> int:
        held = [self.latents, *(x for layer in self.memory for x in layer)]
        return sum(x.numel() * x.element_size() for x in held)


class FixerNetwork(nn.Module):
    """Images and references to clean images, differentiable; sizes must be multiples of `config.multiple`."""

    def __init__(self, config: FixerConfig) -> None:
        super().__init__()
        cure()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.config = config
        # Any: diffusers' modules are reached into below, and a module's attributes have no types
        unet: Any = UNet2DConditionModel(**config.unet)
        vae: Any = AutoencoderKL(**config.vae)
        if config.references == "geometry":
            use_geometry(unet)
        unet.set_attn_processor(MultiViewAttention())
        last = next(block for block in reversed(unet.up_blocks) if hasattr(block, "attentions"))
        last.attentions[-1].transformer_blocks[-1].attn1.set_processor(MultiViewAttention(last=True))
        self.prompt = nn.Parameter(0.02 * torch.randn(config.prompt_tokens, config.unet["cross_attention_dim"]))
        widths = list(config.vae["block_out_channels"])
        self._skips = [f"skip_conv_{i + 1}" for i in range(len(widths))]
        # what comes out of the encoder before each down block, and goes into the decoder before each up block
        sent = [widths[0], *widths[:-1]]
        taken = [widths[-1], *widths[:0:-1]]
        for name, incoming, outgoing in zip(self._skips, reversed(sent), taken, strict=True):
            skip = nn.Conv2d(incoming, outgoing, 1, bias=False)
            if not config.is_small:
                nn.init.constant_(skip.weight, SKIP_INIT)  # a pretrained decoder must not notice them at first
            setattr(vae.decoder, name, skip)
        if config.references == "aligned":
            self.gates = nn.ModuleList(ReferenceGate(c, config.hidden_channels) for c in sent)
            self.head = BlendHead(len(sent), config.feature_channels, config.hidden_channels, config.pixel_unshuffle)
        if config.is_small:
            with torch.no_grad():
                vae.decoder.conv_out.weight[: 3 * config.pixel_unshuffle**2].mul_(0.1)
        if config.lora_rank:
            from peft import LoraConfig

            adapters = LoraConfig(
                r=config.lora_rank,
                lora_alpha=LORA_ALPHA,
                init_lora_weights="gaussian",
                target_modules=list(config.lora_targets),
            )
            vae.add_adapter(adapters, adapter_name=ADAPTER)
        use_fast_convolutions(unet)
        use_fast_convolutions(vae)
        if config.references == "aligned":
            use_fast_convolutions(self.gates)
        self.unet: Any = unet
        self.vae: Any = vae
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not config.lora_rank or _trains_beside_adapters(name))

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What fine-tuning moves: U-Net, adapters and skips of a network with adapters, everything of one without."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(
        self,
        images: Tensor,
        references: Tensor | EncodedReferences | None = None,
        opacity: Tensor | None = None,
        visibility: Tensor | None = None,
        noise: Tensor | None = None,
        correspondence: Tensor | None = None,
        latent_noise: Tensor | None = None,
    ) -> Tensor:
        """The clean views (B, 3, H, W), not yet clamped to [0, 1].

        Args:
            images: (B, 3, H, W) degraded renders in [0, 1].
            references: (B, V, 3, H, W) in [0, 1] or None; V may be 0. Where they are as the photos are they may come
                encoded.
            opacity: (B, 1, H, W) the renders' accumulated opacity in [0, 1], None for full. Without aligned references
                it only tells what was not seen and is to be filled.
            visibility: (B, V, 1, H, W) where aligned references are believable, None for everywhere. Other networks do
                not look at it.
            noise: (B, c, h, w) like the latents, standard normal, to fill what was not seen (not with aligned
                references). Without it, networks with `fill_unseen` draw fresh noise, others fill nothing.
            correspondence: (B, V, 3, H, W) as `correspondence.correspond` makes it, None where nothing is known.
                Networks whose references are wanted without geometry do not look at it.
            latent_noise: (B, 1+V, c, h, w) standard normal, the render's first: every view's latents are drawn from the
                encoder's Gaussian with it, as in the release's training, in place of its mode (not with aligned or
                encoded references).
        """
        if self.config.takes_photos:
            # 1. encode every view, the references' latents alone
            latents, skips = self.encode_images(images, None if latent_noise is None else latent_noise[:, 0])
            if references is not None and not isinstance(references, EncodedReferences):
                beside = None if latent_noise is None else latent_noise[:, 1:]
                references = self.encode_references(references, beside) if references.shape[1] else None
            # 2. noise where the render shows nothing
            if opacity is not None and (noise is not None or self.config.fill_unseen):
                seen = F.adaptive_max_pool2d(opacity, latents.shape[-2:])
                latents = seen * latents + (1 - seen) * (torch.randn_like(latents) if noise is None else noise)
            # 3. one denoising step over all views  4. decode the render's alone
            places = self.places(latents, correspondence if references is not None else None)
            return self.decode_images(self._denoised_render(latents, references, places), skips, images)
        if isinstance(references, EncodedReferences):
            raise ValueError("a network with aligned references needs their pixels, not their encoding")
        # 1. views: the render first, then its references
        views = images[:, None] if references is None else torch.cat([images[:, None], references], dim=1)
        batch, count = views.shape[:2]
        # 2. encode every view with its visibility
        seen = self._visibilities(images, count, opacity, visibility)
        flag = torch.ones_like(seen)
        flag[:, 0] = 0
        stack = torch.cat([views * 2 - 1, seen, flag], dim=2).flatten(0, 1)
        latents, skips = self.encode(F.pixel_unshuffle(stack, self.config.pixel_unshuffle))
        # 3. one denoising step over all views, keep the render's
        latents = self.denoise(latents, count, first_only=True)
        # 4. decode it with skips in which gates have chosen between the views
        chosen, scores = [], []
        shown = seen.flatten(0, 1)
        for gate, skip in zip(self.gates, skips, strict=True):
            shown = F.interpolate(shown, skip.shape[-2:], mode="area")  # of the level before: sizes divide
            blended, score = gate(skip.unflatten(0, (batch, count)), shown.unflatten(0, (batch, count)))
            chosen.append(blended)
            scores.append(score)
        decoded = self.decode(latents.unflatten(0, (batch, count))[:, 0], chosen)
        # 5. blend the views' pixels by weights, and add a little
        colors = 3 * self.config.pixel_unshuffle**2
        blended = self.head(views, seen, F.silu(decoded[:, colors:]), scores)
        return blended + self._residual(decoded[:, :colors])

    def encode_images(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """`encode` of images as they are, (N, 3, H, W) in [0, 1] (not with aligned references)."""
        return self.encode(F.pixel_unshuffle(images * 2 - 1, self.config.pixel_unshuffle), noise)

    def decode_images(self, latents: Tensor, skips: list[Tensor], images: Tensor) -> Tensor:
        """(N, 3, H, W) about [0, 1] from denoised latents and skips of `images` (not with aligned references)."""
        decoded = self.decode(latents, skips)
        if self.config.adds_to_render:
            return images + self._residual(decoded)
        return (F.pixel_shuffle(decoded, self.config.pixel_unshuffle) + 1) / 2

    def _residual(self, decoded: Tensor) -> Tensor:
        """What is added to pixels, (N, 3, H, W), from the decoder's channels for them."""
        limited = self.config.residual_limit * torch.tanh(decoded)
        return F.pixel_shuffle(limited, self.config.pixel_unshuffle)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """(N, C, H, W), RGB in [-1, 1], → scaled latents (N, c, h, w), the mode of the encoder's Gaussian, and the
        activations before each down block, finest first.

        With `noise` (N, c, h, w), standard normal, the latents are drawn from the Gaussian.
        """
        encoder = self.vae.encoder
        x, skips = encoder.conv_in(images), []
        for block in encoder.down_blocks:
            skips.append(x)
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        latents, log_variance = self.vae.quant_conv(x).chunk(2, dim=1)
        if noise is not None:
            latents = latents + (0.5 * log_variance.clamp(*_LOG_VARIANCE)).exp() * noise
        return latents * self.vae.config.scaling_factor, skips

    def places(self, latents: Tensor, correspondence: Tensor | None) -> dict[int, Places] | None:
        """Where the tokens of the renders' latents are in their references, as `predict_noise` takes it; None where
        nothing is known, and for networks that do not look there.
        """
        if correspondence is None or self.config.references != "geometry":
            return None
        levels = len(self.config.unet["block_out_channels"])
        return places_by_count(correspondence, (latents.shape[-2], latents.shape[-1]), levels)

    def encode_references(self, references: Tensor, noise: Tensor | None = None) -> EncodedReferences:
        """References as the photos are, (B, V, 3, H, W) in [0, 1], as `forward` takes them, V at least 1; with `noise`
        (B, V, c, h, w) their latents are drawn as `encode` draws them.

        What comes out of networks with one-way attention depends on no render, keys and values included, and
        otherwise the latents do, so it serves every frame beside which the same photos stand.
        """
        drawn = None if noise is None else noise.flatten(0, 1)
        latents = self.encode_images(references.flatten(0, 1), drawn)[0].unflatten(0, references.shape[:2])
        if self.config.reference_attention == "mutual":
            return EncodedReferences(latents)
        record: list[Memory] = []
        self._unet_pass(latents.flatten(0, 1), {"record": record})
        batch = references.shape[0]
        memory = tuple(tuple(x.unflatten(0, (batch, -1)).flatten(1, 2) for x in layer) for layer in record)
        return EncodedReferences(latents, memory)

    def _denoised_render(
        self, latents: Tensor, references: EncodedReferences | None, places: dict[int, Places] | None
    ) -> Tensor:
        """ẑ₀ (B, c, h, w) of the renders' latents beside their references."""
        if references is None:
            return self.denoise(latents, 1)
        if references.memory:
            noise = self._unet_pass(latents, {"held": iter(references.memory), "places": places})
            return self._without_noise(latents, noise)
        stack = torch.cat([latents[:, None], references.latents], dim=1)
        denoised = self.denoise(stack.flatten(0, 1), stack.shape[1], places, first_only=True)
        return denoised.unflatten(0, stack.shape[:2])[:, 0]

    def predict_noise(
        self, latents: Tensor, views: int, places: dict[int, Places] | None = None, first_only: bool = False
    ) -> Tensor:
        """ε̂ (B·views, c, h, w) of latents of the same shape, a sample's views one after the other; with `first_only`
        right for the first of them alone.

        `places` say where in a sample's other views its first one's tokens are, level by level.
        """
        one_way = self.config.reference_attention == "one-way"
        attention = {"views": views, "one_way": one_way, "first_only": first_only, "places": places}
        return self._unet_pass(latents, attention)

    def denoise(
        self, latents: Tensor, views: int, places: dict[int, Places] | None = None, first_only: bool = False
    ) -> Tensor:
        """ẑ₀ of latents (B·views, c, h, w) by one step; see `predict_noise`."""
        return self._without_noise(latents, self.predict_noise(latents, views, places, first_only))

    def _unet_pass(self, latents: Tensor, attention: dict[str, Any]) -> Tensor:
        prompt = self.prompt[None].expand(latents.shape[0], -1, -1).to(latents.dtype)
        # a number would be copied to the device, which waits for it; filling does not
        step = torch.full((1,), self.config.timestep, dtype=torch.int64, device=latents.device)
        return self.unet(latents, step, prompt, cross_attention_kwargs=attention, return_dict=False)[0]

    def _without_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        alpha = self._alpha()
        return (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5

    def decode(self, latents: Tensor, skips: list[Tensor]) -> Tensor:
        """Scaled latents (N, c, h, w) and the encoder's skips, finest first → (N, C, H, W), RGB about [-1, 1]."""
        decoder = self.vae.decoder
        x = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(latents / self.vae.config.scaling_factor)))
        for block, name, skip in zip(decoder.up_blocks, self._skips, reversed(skips), strict=True):
            if self.config.skip_scale:
                x = x + getattr(decoder, name)(skip * self.config.skip_scale)
            x = block(x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    def _alpha(self) -> float:
        """ᾱ of the step: the product of 1 − β up to it, with √β linear between its ends."""
        ends = self.config.beta_start**0.5, self.config.beta_end**0.5
        betas = torch.linspace(*ends, 1000, dtype=torch.float64) ** 2
        return float((1 - betas)[: self.config.timestep + 1].prod())

    @staticmethod
    def _visibilities(images: Tensor, count: int, opacity: Tensor | None, visibility: Tensor | None) -> Tensor:
        """(B, 1+V, 1, H, W): opacity of the render and visibility of the references, full where not given."""
        batch, _, height, width = images.shape
        if opacity is None:
            opacity = images.new_ones((batch, 1, height, width))
        if visibility is None:
            visibility = images.new_ones((batch, count - 1, 1, height, width))
        return torch.cat([opacity[:, None], visibility], dim=1)


def _trains_beside_adapters(name: str) -> bool:
    return name.startswith("unet.") or ".lora_" in name or ".skip_conv_" in name


# name: U-Net widths, VAE widths, latent channels, head and gate width
_SIZES: dict[str, tuple[list[int], list[int], int, int]] = {
    "tiny": ([32, 48], [16, 24, 48, 64], 8, 24),
    "small": ([48, 80], [24, 40, 64, 96], 16, 24),
    "medium": ([96, 160], [32, 64, 96, 160], 16, 32),
}


def small_config(size: str, references: Literal["aligned", "geometry"] = "aligned") -> FixerConfig:
    """The configuration of our own small fixers; KeyError for an unknown size."""
    unet_widths, vae_widths, latent, hidden = _SIZES[size]
    unshuffle, features, tokens = 2, 8, 4
    channels, made = IMAGE_CHANNELS, 3 + features
    if references == "geometry":
        # tokens of 8 pixels, as SD-Turbo's are: what is fetched of the photos is fetched as tokens
        vae_widths, channels, made = [*vae_widths[:2], vae_widths[-1]], 3, 3
    return FixerConfig(
        unet={
            "in_channels": latent,
            "out_channels": latent,
            "block_out_channels": unet_widths,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": [width // 16 for width in unet_widths],
            "norm_num_groups": 8,
            "use_linear_projection": True,
        },
        vae={
            "in_channels": channels * unshuffle**2,
            "out_channels": made * unshuffle**2,
            "latent_channels": latent,
            "block_out_channels": vae_widths,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae_widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae_widths),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "scaling_factor": 1.0,
            "mid_block_add_attention": False,
        },
        references=references,
        views=3,
        prompt_tokens=tokens,
        pixel_unshuffle=unshuffle,
        feature_channels=features if references == "aligned" else 0,
        hidden_channels=hidden,
        # a blend with photos may change a pixel beyond its own limit, which there is none of here
        residual_limit=0.25 if references == "aligned" else 1.0,
        adds_to_render=references == "geometry",
    )
