"""Weights of SD-Turbo's size in the published layouts, through the loader: every tensor, a picture, time and memory.

    python recipes/bench/loading.py [--width 1.0] [--folder DIR] [--keep]

Random weights in bfloat16 are written as `nvidia/difix_ref` is (a diffusers folder whose VAE PEFT has wrapped, with a
text encoder and a tokenizer), as the release trainer's `model_N.pkl` beside it (with its optimiser's state), and as
SD-Turbo is (a VAE without adapters). At full width that takes 10 GiB of disk and up to 6 GiB of memory. A process for
each loads it as any command does, holds every tensor against the file's, fixes a picture of 64×64 beside a reference
and compares it with that of the network the files were written from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from fixer import pictures, random_network, sd_turbo_config
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from difixcli.fixer import Fixer, FixerNetwork
from difixcli.fixer.weights import load_network

_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def write(folder: Path, width: float) -> None:
    """All three layouts of one random network under `folder`, and the picture it makes (picture.pt)."""
    network = random_network(sd_turbo_config(width)).to(torch.bfloat16)
    config, state = network.config, {name: value.detach() for name, value in network.state_dict().items()}
    published, plain = folder / "difix_ref", folder / "sd-turbo"
    vae = {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}
    unet = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
    begun = {name.replace(".base_layer", ""): value for name, value in vae.items() if ".lora_" not in name}
    begun = {name: value for name, value in begun.items() if ".skip_conv_" not in name}
    for target, tensors in ((published, vae), (plain, begun)):
        for part in ("unet", "vae", "scheduler"):
            (target / part).mkdir(parents=True)
        extra = {"gamma": 1.0, "ignore_skip": False, "lora_rank": config.lora_rank} if target == published else {}
        save_file({name: value.contiguous() for name, value in tensors.items()}, _weights(target / "vae"))
        _json(target / "vae" / "config.json", {"_class_name": "AutoencoderKL", **config.vae, **extra})
        _json(target / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", **config.unet})
        _json(target / "scheduler" / "scheduler_config.json", _SCHEDULE)
    save_file({name: value.contiguous() for name, value in unet.items()}, _weights(published / "unet"))
    shutil.copyfile(_weights(published / "unet"), _weights(plain / "unet"))
    _write_text_encoder(published, config.unet["cross_attention_dim"])
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(published / part, plain / part)
    trained = {"vae_lora_target_modules": config.lora_targets, "rank_vae": config.lora_rank}
    trained |= {"state_dict_unet": unet}
    trained |= {"state_dict_vae": {n: v for n, v in vae.items() if ".lora_" in n or ".skip_conv_" in n}}
    moments = {i: {"exp_avg": value, "exp_avg_sq": value} for i, value in enumerate(unet.values())}
    torch.save({**trained, "optimizer": {"state": moments, "param_groups": []}}, published / "model_1.pkl")
    del vae, unet, begun, state, trained, moments
    network.float()
    with torch.no_grad():
        network.prompt.copy_(load_network_prompt(published))
    torch.save(_picture(network), folder / "picture.pt")


def load_network_prompt(folder: Path) -> Tensor:
    """(L, D) the prompt's embedding, by transformers' own classes."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    length = tokenizer.model_max_length
    ids = tokenizer("remove degradation", padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).last_hidden_state[0]


def check(source: Path, folder: Path) -> None:
    """Load, compare and print one line of JSON; run in a process of its own, so that the memory is its alone."""
    logging.disable_progress_bar()
    begun = time.monotonic()
    network = load_network(source)
    seconds, peak, anonymous = time.monotonic() - begun, _memory("VmHWM"), _memory("RssAnon")
    state = network.state_dict()
    compared, numbers, largest = 0, 0, 0.0
    with torch.no_grad():
        for name, value in _file_tensors(source):
            held = state.get(name)
            if held is None:
                held = state[_wrapped(name)]
            largest = max(largest, float((held - value.float()).abs().max()))
            compared, numbers = compared + 1, numbers + value.numel()
    fresh = [name for name in state if source.name == "sd-turbo" and (".lora_" in name or ".skip_conv_" in name)]
    found = {
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "of_them_after_loading_no_files_gib": round(anonymous, 2),
        "weights_gib": round(sum(value.nbytes for value in state.values()) / 2**30, 2),
        "parameters": sum(value.numel() for value in state.values()),
        "tensors": compared,
        "numbers": numbers,
        "not_in_files": len(state) - compared - len(fresh),  # the prompt
        "new": len(fresh),
        "largest_difference": largest,
    }
    if not fresh:
        found["picture_difference"] = float((_picture(network) - torch.load(folder / "picture.pt")).abs().max())
    print(json.dumps(found))


def _file_tensors(source: Path):  # type: ignore[no-untyped-def]
    """(name, tensor) of everything the files hold, one at a time; names as the network's."""
    from safetensors import safe_open

    if source.suffix == ".pkl":
        saved = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        yield from ((f"unet.{name}", value) for name, value in saved["state_dict_unet"].items())
        yield from ((f"vae.{name}", value) for name, value in saved["state_dict_vae"].items())
        return
    for part in ("unet", "vae"):
        with safe_open(_weights(source / part), "pt") as file:
            yield from ((f"{part}.{name}", file.get_tensor(name)) for name in file.keys())  # noqa: SIM118


def _wrapped(name: str) -> str:
    """A plain layer's tensor as PEFT names it under an adapter."""
    module, _, kind = name.rpartition(".")
    return f"{module}.base_layer.{kind}"


def _picture(network: FixerNetwork) -> Tensor:
    image, reference = pictures(2, 64, 64).split(1)
    return Fixer(network)(image, reference[None])


def _write_text_encoder(folder: Path, width: int) -> None:
    """SD 2's text encoder (23 layers, 1024 wide) with random weights, and a tokenizer that knows single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokens = {word: number for number, word in enumerate(words)}
    (folder / "tokenizer").mkdir()
    _json(folder / "tokenizer" / "vocab.json", tokens)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "!", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}  # type: ignore[dict-item]
    _json(folder / "tokenizer" / "tokenizer_config.json", special)
    config = CLIPTextConfig(
        vocab_size=49408 if width == 1024 else len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=23,
        num_attention_heads=max(1, width // 64),
        hidden_act="gelu",
        bos_token_id=tokens["<|startoftext|>"],
        eos_token_id=tokens["<|endoftext|>"],
        pad_token_id=0,
    )
    CLIPTextModel(config).to(torch.bfloat16).save_pretrained(folder / "text_encoder")


def _weights(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))


def _memory(kind: str) -> float:
    """GiB of this process: `VmHWM` the largest resident size so far, `RssAnon` what is no file's right now.

    (getrusage's figure begins at that of the process that started this one.)
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[kind].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=float, default=1.0, help="share of SD-Turbo's channels")
    parser.add_argument("--folder", type=Path, help="where to write the weights; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="do not remove them")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check, arguments.folder)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        logging.disable_progress_bar()
        begun = time.monotonic()
        write(folder, arguments.width)
        print(f"written in {time.monotonic() - begun:.0f} s with {_memory('VmHWM'):.1f} GiB", flush=True)
        for source in (folder / "difix_ref", folder / "difix_ref" / "model_1.pkl", folder / "sd-turbo"):
            line = [sys.executable, __file__, "--folder", str(folder), "--check", str(source)]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            print(f"{source.name}: {(done.stdout or done.stderr).strip()}", flush=True)
            if done.stdout and done.stderr:
                print(f"it also printed: {done.stderr.strip()}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
