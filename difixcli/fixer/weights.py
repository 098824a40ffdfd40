"""Reads and writes fixer weights: our own folder, and the two layouts weights of this kind are published in.

- ours: `config.json` + `model.safetensors` (prompt embedding included), and of fixers that have bolder weights too
  `bolder.safetensors`, of the same configuration.
- published: a diffusers folder `unet/ vae/ text_encoder/ tokenizer/ scheduler/`, whose VAE may be wrapped by PEFT
  (`….base_layer.weight`, `….lora_A.vae_skip.weight`) as NVIDIA's is, or plain as SD-Turbo's.
- the release trainer's `model_N.pkl`: the whole U-Net, adapters and skips. The rest of the VAE and the text encoder
  are those of the published folder it lies in, else of SD-Turbo, which that trainer always starts from. GeoQuery's
  is the same with `state_dict_geo_modules`, and stands for the folder it lies in; any other does where it lies alone.

Nothing is unpickled but tensors, and no code comes with weights.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difixcli.errors import InputError, near, out_of_memory, short
from difixcli.fixer.network import ADAPTER, LORA_ALPHA, SKIP_INIT, FixerConfig, FixerNetwork
from difixcli.model_folders import (
    FORMATS,
    GEOQUERY,
    HUB_NAMES,
    SD_TURBO,
    check_kind,
    looks_like_hub_name,
    no_model,
)
from difixcli.runs import is_the_systems, read_json, unreadable
from difixcli.shapes import built
from difixcli.tensor_files import read_pickled, read_safetensors, write_tensors
from difixcli.torchvision_cure import cure

BUNDLED = Path(__file__).parent / "bundled"
BOLDER = "bolder.safetensors"
PROMPT = "remove degradation"
_ZIP = b"PK\x03\x04"  # how a file of torch.save begins
_WITHOUT_REFERENCES = "nvidia/difix"  # of the published ones all others were trained with one
FORMAT = FORMATS["fixer"]
NVIDIA_LICENCE = (
    "NVIDIA's licence for Difix weights allows non-commercial research and evaluation only "
    "(these weights are in the layout Difix is released in)"
)
GEOQUERY_LICENCE = (
    "MIT (these weights are in the layout GeoQuery is released in, which starts from SD-Turbo, whose own are under the "
    "Stability AI community licence)"
)
STABILITY_LICENCE = "the Stability AI community licence of SD-Turbo"
# Files of a hub repository that are read; nothing else is downloaded.
_HUB_FILES = [
    "config.json",
    "model.safetensors",
    "bolder.safetensors",
    "model_index.json",
    "*/config.json",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "scheduler/scheduler_config.json",
]
# Where the release puts adapters when a VAE has none yet: the decoder's convolutions, attention and skips.
_ADAPTED_SUFFIXES = (
    "conv1",
    "conv2",
    "conv_in",
    "conv_shortcut",
    "conv",
    "conv_out",
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
)
_DEFAULT_RANK = 4
_GEOMETRY = "state_dict_geo_modules"
# GeoQuery's names of a module's parts, and ours
_GEOMETRY_PARTS = {
    **{f"geo_attn.{part}_proj": part for part in ("q", "k", "v", "out")},
    "geo_attn.rel_pos_embed": "offsets",
    "geo_attn.norm": "norm",
    "weight_predictor": "weight",
}
_HEADER_BYTES = 2**26  # of a checkpoint without its tensors; no real one has more


def load_network(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> FixerNetwork:
    """A network with its weights, float32 on the CPU, from whatever `Fixer.from_pretrained` takes; of two networks the
    careful one.
    """
    return load_networks(name_or_path, revision, token, cache_dir)[0]


def load_networks(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[FixerNetwork, FixerNetwork | None]:
    """`load_network`, and the bolder one, where there is one."""
    path = Path(name_or_path).expanduser()
    if revision is not None and (path.exists() or str(name_or_path) == "bundled"):
        raise InputError(f"{name_or_path} lies here, where there is no revision {revision}; leave it out.")
    if str(name_or_path) == "bundled":
        if not (BUNDLED / "model.safetensors").is_file():
            raise InputError(
                "This installation has no bundled fixer weights; reinstall difixcli or give the folder of a fixer."
            )
        return _with_bolder(BUNDLED, _load_own(BUNDLED))
    if path.is_dir():
        # a local copy of a hub's repository mostly has its name
        views = 0 if path.resolve().name == _WITHOUT_REFERENCES.rpartition("/")[2] else 1
        return _with_bolder(path, _load_folder(path, views))
    if path.suffix == ".pkl":
        return _load_trainer_file(path), None
    if looks_like_hub_name(str(name_or_path)):
        name = str(name_or_path)
        folder = download(name, revision, token, cache_dir)
        views = 0 if name == _WITHOUT_REFERENCES else 1
        return _with_bolder(folder, _load_folder(folder, views, token, cache_dir))
    raise no_model(str(name_or_path), "fixer")


def local_files(name_or_path: str | Path) -> list[Path]:
    """The files here that hold these weights, sorted; none for a name that is on the hub or nowhere."""
    path = BUNDLED if str(name_or_path) == "bundled" else Path(name_or_path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    held = [f for f in path.rglob("*") if f.suffix == ".safetensors" or f.name.endswith("config.json")]
    return sorted(held + _pickled(path))


def save_networks(network: FixerNetwork, bolder: FixerNetwork | None, folder: Path) -> Path:
    """Writes config.json and model.safetensors, and bolder.safetensors or none, each whole or not at all; returns the
    folder.
    """
    if bolder is None:
        (folder / BOLDER).unlink(missing_ok=True)
    further = {} if bolder is None else {BOLDER: bolder.state_dict()}
    config = {"format": FORMAT, **network.config.to_json()}
    return write_tensors(network.state_dict(), config, folder, "The fixer", further)


@torch.no_grad()
def merge_adapters(network: FixerNetwork) -> FixerNetwork:
    """The same network with its adapters worked into the weights they adapt: W + (α/r)·B·A.

    Tensors without adapters are shared with the network given. One without any adapters is returned as it is.
    """
    config = network.config
    if not config.lora_rank:
        return network
    tensors: dict[str, Tensor] = dict(network.state_dict())
    for target in config.lora_targets:
        name = f"vae.{target}"
        down = tensors.pop(f"{name}.lora_A.{ADAPTER}.weight")
        up = tensors.pop(f"{name}.lora_B.{ADAPTER}.weight")
        weight = tensors.pop(f"{name}.base_layer.weight")
        # the second layer of a convolution's adapter is 1×1
        change = (up.flatten(1).double() @ down.flatten(1).double()).reshape(weight.shape)
        tensors[f"{name}.weight"] = (weight.double() + LORA_ALPHA / config.lora_rank * change).to(weight)
        if f"{name}.base_layer.bias" in tensors:
            tensors[f"{name}.bias"] = tensors.pop(f"{name}.base_layer.bias")
    with torch.device("meta"):
        merged = FixerNetwork(dataclasses.replace(config, lora_rank=0, lora_targets=[]))
    merged.load_state_dict(tensors, assign=True)
    return merged


def _load_folder(
    folder: Path, views: int, token: str | None = None, cache_dir: str | Path | None = None
) -> FixerNetwork:
    if (folder / "config.json").is_file():
        return _load_own(folder)
    pickled = _pickled(folder)
    found = [path for path in pickled if _may_hold_geometry(path)]
    if not found:
        if (folder / "unet").is_dir() and (folder / "vae").is_dir():
            return _load_published(folder, views)
        found = pickled  # with nothing beside them they stand for their folder, or tell why not
    if len(found) == 1:
        return _load_trainer_file(found[0], token, cache_dir)
    if found:
        raise InputError(f"{folder} holds several checkpoints ({', '.join(path.name for path in found)}); name one.")
    raise InputError(
        f"{folder} is not a fixer: it has neither config.json with model.safetensors nor the folders unet and vae."
    )


def _pickled(folder: Path) -> list[Path]:
    """The files of a folder that are called as trainers' checkpoints are, sorted."""
    return sorted(path for path in folder.glob("*.pkl") if path.is_file())


def _may_hold_geometry(path: Path) -> bool:
    """Whether a file of torch.save names GeoQuery's modules, or is so damaged that this cannot be told; nothing of it
    is unpickled for that.

    Raises InputError for a file that the system does not let us read.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            header = next((name for name in opened.namelist() if name.endswith("/data.pkl")), None)
            if header is None:
                return False
            with opened.open(header) as file:
                return _GEOMETRY.encode() in file.read(_HEADER_BYTES)
    except RuntimeError:
        return False  # encrypted, or packed in a way that zipfile cannot read and torch never writes
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:  # what it says may be nonsense
        if is_the_systems(error):
            raise unreadable(path, error) from error
        with path.open("rb") as raw:
            return raw.read(len(_ZIP)) == _ZIP


def _load_own(folder: Path) -> FixerNetwork:
    values = _read_config(folder / "config.json")
    if values.pop("format", None) != FORMAT:
        check_kind(folder, "fixer")
        raise InputError(f"{folder / 'config.json'} is not a fixer's configuration; give a folder this program wrote.")
    config = built(FixerConfig, values, folder / "config.json", "update difixcli")
    source = folder / "model.safetensors"
    return _filled(lambda: config, _read_tensors(source), source)


def _with_bolder(folder: Path, network: FixerNetwork) -> tuple[FixerNetwork, FixerNetwork | None]:
    """The network of a folder, and the bolder one that lies there too, or None."""
    source = folder / BOLDER
    return network, _filled(lambda: network.config, _read_tensors(source), source) if source.is_file() else None


def _load_published(folder: Path, views: int) -> FixerNetwork:
    vae_file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    unet_file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    config, tensors = _published_vae(folder, views)
    tensors |= {f"unet.{name}": value for name, value in _read_tensors(unet_file).items()}
    tensors["prompt"] = prompt_embedding(folder, PROMPT)
    config = dataclasses.replace(config, prompt_tokens=tensors["prompt"].shape[0])
    if not config.lora_rank:  # plain SD-Turbo: the release's way to begin, new adapters and skips that start at nothing
        return _with_new_adapters(config, tensors, vae_file)
    return _filled(lambda: config, tensors, vae_file)


def _published_vae(folder: Path, views: int) -> tuple[FixerConfig, dict[str, Tensor]]:
    """The folder's configuration and its VAE's tensors; `lora_rank` is 0 where the VAE is not wrapped by PEFT."""
    cure()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae_values = _read_config(folder / "vae" / "config.json")
    tensors = _read_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors")
    ending = f".lora_A.{ADAPTER}.weight"
    adapted = sorted(name.removesuffix(ending) for name in tensors if name.endswith(ending))
    beta_start, beta_end = _noise_schedule(folder)
    config = FixerConfig(
        unet=_accepted(UNet2DConditionModel, _read_config(folder / "unet" / "config.json")),
        vae=_accepted(AutoencoderKL, vae_values),
        views=int(vae_values.get("views", views)),
        skip_scale=0.0 if vae_values.get("ignore_skip") else float(vae_values.get("gamma", 1.0)),
        lora_rank=tensors[adapted[0] + ending].shape[0] if adapted else 0,
        lora_targets=adapted,
        licence=str(vae_values.get("licence") or (NVIDIA_LICENCE if adapted else STABILITY_LICENCE)),
        beta_start=beta_start,
        beta_end=beta_end,
    )
    return config, {f"vae.{name}": value for name, value in tensors.items()}


def _load_trainer_file(path: Path, token: str | None = None, cache_dir: str | Path | None = None) -> FixerNetwork:
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the model_N.pkl that the release's trainer wrote.")
    # mapped: what is not read (the optimiser is twice the U-Net) takes no memory; files of old torch cannot be
    saved = read_pickled(path, "give a whole checkpoint of the release's trainer", mapped=True)
    try:
        unet, vae = dict(saved["state_dict_unet"]), dict(saved["state_dict_vae"])
        rank, targets = int(saved["rank_vae"]), sorted(saved["vae_lora_target_modules"])
        unet |= {_geometry_name(name): value for name, value in dict(saved.get(_GEOMETRY, {})).items()}
        if not all(isinstance(value, Tensor) for value in (*unet.values(), *vae.values())):
            raise ValueError("its state dicts hold other things than tensors")
        for name in [name for name in unet if name.endswith(".geometry.offsets")]:
            unet[name] = unet[name].squeeze(2).squeeze(0)  # theirs has room for samples and tokens
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {short(str(error))}"
        raise InputError(f"{path} is not a whole checkpoint of the release's trainer ({reason}).") from error
    geometry = _GEOMETRY in saved
    del saved
    base = base_of(path, token, cache_dir)
    config, tensors = _published_vae(base, views=1)
    wrapped = set(targets)
    for name in list(tensors):  # a plain base's layers move under the adapters
        module, _, kind = name.removeprefix("vae.").rpartition(".")
        if module in wrapped:
            tensors[f"vae.{module}.base_layer.{kind}"] = tensors.pop(name)
    tensors |= {f"vae.{name}": value for name, value in vae.items()}
    tensors |= {f"unet.{name}": value for name, value in unet.items()}
    del unet, vae
    tensors["prompt"] = prompt_embedding(base, PROMPT)
    tokens = tensors["prompt"].shape[0]
    config = dataclasses.replace(
        config,
        references="geometry" if geometry else "raw",
        lora_rank=rank,
        lora_targets=targets,
        prompt_tokens=tokens,
        licence=GEOQUERY_LICENCE if geometry else NVIDIA_LICENCE,
    )
    return _filled(lambda: config, tensors, path)


def base_of(path: Path, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder with the rest of what a trainer's file holds: the one it lies in, else SD-Turbo's, from the hub."""
    return path.parent if (path.parent / "vae").is_dir() else download(SD_TURBO, None, token, cache_dir)


def _geometry_name(name: str) -> str:
    """The U-Net's name of one of GeoQuery's tensors; ValueError for what is none of these."""
    found = re.fullmatch(r"(?:mid|(down|up)_(\d+))_(\d+)_(\d+)\.(.+?)((?:\.\d+)?\.(?:weight|bias))?", name)
    if found is None or found[5] not in _GEOMETRY_PARTS:
        raise ValueError(f"it has no place for '{short(name)}'")
    way, level, place, layer = found[1], found[2], found[3], found[4]
    block = f"{way}_blocks.{level}" if way else "mid_block"
    part = _GEOMETRY_PARTS[found[5]] + (found[6] or "")
    return f"{block}.attentions.{place}.transformer_blocks.{layer}.geometry.{part}"


def _with_new_adapters(config: FixerConfig, tensors: dict[str, Tensor], source: Path) -> FixerNetwork:
    modules = {name.removeprefix("vae.").rpartition(".")[0] for name in tensors}
    targets = sorted(m for m in modules if m.startswith("decoder.") and m.endswith(_ADAPTED_SUFFIXES))
    levels = len(config.vae["block_out_channels"])
    targets += [f"decoder.skip_conv_{i + 1}" for i in range(levels)]
    config = dataclasses.replace(config, lora_rank=_DEFAULT_RANK, lora_targets=targets)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in FixerNetwork(config).state_dict().items()}
    filled = new_adapters(shapes, _DEFAULT_RANK, seed=0)
    for name in shapes.keys() - filled.keys():
        plain = name.replace(".base_layer.", ".")
        if plain in tensors:
            filled[name] = tensors.pop(plain)
        elif ".skip_conv_" in name:
            filled[name] = torch.full(shapes[name], SKIP_INIT)
        else:
            raise InputError(f"{source} lacks the tensor '{plain}'; give whole weights of this architecture.")
    return _filled(lambda: config, filled, source)


def new_adapters(shapes: Mapping[str, torch.Size], rank: int, seed: int) -> dict[str, Tensor]:
    """The adapters among tensors of these names and shapes, as the release begins them (`gaussian` in peft).

    A is normal with deviation 1/rank and B is zero, so that nothing changes yet.
    """
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in sorted(shapes):
        if f".lora_A.{ADAPTER}." in name:
            made[name] = torch.randn(shapes[name], generator=generator) / rank
        elif f".lora_B.{ADAPTER}." in name:
            made[name] = torch.zeros(shapes[name])
    return made


def _filled(make_config: Callable[[], FixerConfig], tensors: dict[str, Tensor], source: Path) -> FixerNetwork:
    """A network of this configuration holding these tensors, none missing, none left over, all finite.

    `tensors` is used up: each gives way to its float32 one, so that half-precision files never lie in memory twice.
    """
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{source} holds values that are not numbers (in '{name}'); give undamaged weights.")
        tensors[name] = value.float()
    try:
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            network = FixerNetwork(make_config())
        network.load_state_dict(tensors, assign=True)
    except Exception as error:  # diffusers builds whatever a configuration asks for, and stumbles anywhere
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{source} does not fit the configuration beside it ({reason}); give a whole fixer folder."
        ) from error
    return network


def _accepted(model: type, values: dict[str, Any]) -> dict[str, Any]:
    """The entries of a diffusers config.json that the class takes; the rest is bookkeeping or the release's own."""
    names = inspect.signature(model.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in values.items() if name in names and name != "self"}


def _noise_schedule(folder: Path) -> tuple[float, float]:
    """First and last β, once the schedule is known to be the one a single step was derived for."""
    path = folder / "scheduler" / "scheduler_config.json"
    values = _read_config(path)
    wanted = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "num_train_timesteps": 1000}
    for name, value in wanted.items():
        if values.get(name) != value:
            raise InputError(f"{path} says {name}={values.get(name)!r}, but one-step fixers need {value!r}.")
    try:
        return float(values["beta_start"]), float(values["beta_end"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} lacks beta_start or beta_end; give a whole fixer folder.") from error


@torch.no_grad()
def prompt_embedding(folder: Path, prompt: str) -> Tensor:
    """(L, D) last hidden state, for a prompt, of the text encoder of a folder in diffusers' layout.

    Raises InputError where the folder has none that can be read.
    """
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise InputError(f"{folder} has no folder {part}, which the prompt's embedding is made with.")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # progress is the command's to show
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # transformers and safetensors raise whatever their parsers do
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The text encoder in {folder} cannot be read ({reason}).") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    tokens = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return encoder(tokens.input_ids).last_hidden_state[0]


def download(
    name: str, revision: str | None = None, token: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A hub repository's files, from the cache or the network; InputError where they are in neither.

    `revision` is a branch, tag or commit; `token` one for private repositories, instead of the one that is logged in;
    `cache_dir` another cache than the hub's own.
    """
    from huggingface_hub import snapshot_download

    files = [*_HUB_FILES, "*.pkl"] if name == GEOQUERY else _HUB_FILES
    try:
        found = snapshot_download(name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=files)
        return Path(found)
    except Exception as error:  # the hub's client raises errors of several libraries for a missing network
        close = [] if name in HUB_NAMES["fixer"] else near(name, HUB_NAMES["fixer"])
        suggestion = f" (did you mean {' or '.join(close)}?)" if close else ""
        name = name if revision is None else f"{name}' of revision '{revision}"
        raise InputError(
            f"The fixer '{name}' is neither in the Hugging Face cache nor reachable on the hub{suggestion}: "
            f"check the name and the network, or give a local folder ({type(error).__name__})."
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path, dict)
    return values


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} is missing; give a whole fixer folder.")
    return read_safetensors(path, "fetch it again")
