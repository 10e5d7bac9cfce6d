"""The files of a small diffusers model, and what may be wrong with them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from tests.fuzz import nasty

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
Files = dict[str, bytes]

STEPS = 4
"""Timesteps of the models: few, since a training ends with a sheet of draws."""

OTHER_PROCESSES = (
    "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler", "CMStochasticIterativeScheduler", "KarrasVeScheduler", "VQDiffusionScheduler",
    "FlowMatchHeunDiscreteScheduler",
)  # fmt: skip
"""diffusers' schedulers of processes that are not known: none of them may be read."""

FLOW = "FlowMatchEulerDiscreteScheduler"

SAME_PROCESS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler",
    "LMSDiscreteScheduler",
)  # fmt: skip

VALUES = (
    None, True, -1, 0, 1, 2, 3, 6, 1.5, 10**12, "", "x", "16", [], [8], [4, 8], [0, 8], [-4, 8], [4, 7], [8, 16], [4, "8"],
    {}, {"a": 1}, [[4], [8]], ["DownBlock2D"], ["DownBlock2D", "CrossAttnDownBlock2D"], float("nan"), float("inf"), 1e-300,
    "silu", "relu", "fourier", "none", "conv",
)  # fmt: skip

BETAS = (-1, 0, 1, 1.5, 0.5, 0.999, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"), None, "0.02", [], [0.1], True)
TRAINED = (
    [],
    [0.1] * STEPS,
    [0.1] * (STEPS - 1),
    [0] * STEPS,
    [1] * STEPS,
    [2] * STEPS,
    [-0.1] * STEPS,
    [float("nan")] * STEPS,
    ["x"] * STEPS,
    [[0.1]] * STEPS,
    "x",
    {},
    0.1,
)
PIPELINES = (
    {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]},
    {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]},
    {"_class_name": "LDMPipeline", "vae": ["diffusers", "AutoencoderKL"]}, {}, [], None, 5, {"_class_name": 5},
    {"_class_name": None, "vqvae": None}, {"vqvae": [None, None]}, {"unet": "x"},
)  # fmt: skip
CARDS = (
    {}, [], None, 5, {"steps": -1}, {"steps": "x"}, {"steps": 10**400}, {"steps": 1e999}, {"dataset": 5, "files": []},
    {"base": []}, {"base": {"base": {"steps": 1}}}, {"steps": True}, {"dataset": "folder:pictures", "files": "x"},
    {"dataset": "photos", "files": None}, {"steps": 5, "dataset": "\ud800"}, {"data": ["x"], "images": -1},
)  # fmt: skip


@cache
def valid(channels: tuple[int, int] = (4, 8), size: int = 8) -> Files:
    """Return the files of a small model that is right."""
    from diffusers import DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as place:
        torch.default_generator.manual_seed(0)
        down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        unet = UNet2DModel(size, block_out_channels=channels, layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                           down_block_types=down, up_block_types=up)  # fmt: skip
        unet.save_pretrained(Path(place, "unet"))
        DDPMScheduler(STEPS).save_pretrained(Path(place, "scheduler"))
        return {str(file.relative_to(place)): file.read_bytes() for file in Path(place).rglob("*") if file.is_file()}


def _keys(files: Files, draw: Random) -> None:
    """Drop, rename or prefix keys."""
    weights = _read(files)
    keys = sorted(weights)
    roll = draw.random()
    if roll < 0.35:
        for key in draw.sample(keys, draw.choice((1, 1, len(keys) // 2, max(0, len(keys) - 1)))):
            del weights[key]
    elif roll < 0.6:
        for key in draw.sample(keys, min(len(keys), draw.choice((1, 2)))):
            weights[draw.choice((key.upper(), f"{key}.x", key.replace(".weight", ".bias"), "x", f"ema.{key}"))] = weights.pop(
                key
            )
    else:
        prefix = draw.choice(
            ("_orig_mod.", "module.", "module._orig_mod.", "x.", "model.", "unet.", "ema_model.", "module.module.")
        )
        share = draw.choice((1, 1, 0.5))
        weights = {prefix + key if draw.random() < share else key: value for key, value in weights.items()}
    files[WEIGHTS] = save(weights)


def _tensors(files: Files, draw: Random) -> None:
    """Change shapes, types or numbers of tensors."""
    weights = _read(files)
    for key in draw.sample(sorted(weights), min(len(weights), draw.choice((1, 1, 3, len(weights))))):
        value = weights[key].float()
        shapes = (value[..., :-1], value[:0], value.unsqueeze(0), value.reshape(-1), value.transpose(0, -1))
        types = (value.half(), value.double(), value.bfloat16(), value.long(), value.to(torch.float8_e4m3fn))
        choices = (*shapes, *types, value * 0, value / 0, value * 1e30, torch.full(value.shape, math.nan))
        weights[key] = draw.choice(choices).contiguous()
    files[WEIGHTS] = save(weights)


def _bytes(files: Files, draw: Random) -> None:
    name = draw.choice(sorted(files))
    files[name] = nasty.damaged(files[name], draw)


def _header(files: Files, draw: Random) -> None:
    """Damage the length or the JSON at the head of the weights."""
    content = files.get(WEIGHTS, b"")
    length = draw.choice((0, 1, 2**63, 2**64 - 1, len(content), 100))
    files[WEIGHTS] = (
        length.to_bytes(8, "little") + content[8:]
        if draw.random() < 0.5
        else content[:8] + nasty.flipped(content[8:600], draw) + content[600:]
    )


def _config(files: Files, draw: Random) -> None:
    _json(files, CONFIG, VALUES, draw)


def _schedule(files: Files, draw: Random) -> None:
    extra: dict[str, Any] = {}
    roll = draw.random()
    if roll < 0.3:
        extra = {"_class_name": draw.choice((*OTHER_PROCESSES, *SAME_PROCESS, FLOW, "NoSuchScheduler", None, 5, []))}
    elif roll < 0.7:
        extra = {draw.choice(("beta_start", "beta_end")): draw.choice(BETAS)}
    elif roll < 0.8:
        extra = {"trained_betas": draw.choice(TRAINED)}
    elif roll < 0.9:
        schedule = draw.choice(("scaled_linear", "squaredcos_cap_v2", "sigmoid", "x"))
        prediction = draw.choice(("sample", "v_prediction", "flow_prediction", None, 5))
        extra = draw.choice(({"rescale_betas_zero_snr": True}, {"beta_schedule": schedule}, {"prediction_type": prediction}))
    else:
        _json(files, SCHEDULER, VALUES, draw)
    _json(files, SCHEDULER, (), draw, extra)


def _json(files: Files, name: str, values: Sequence[Any], draw: Random, extra: dict[str, Any] | None = None) -> None:
    """Add `extra` to a JSON object, or change, remove or add one of its fields."""
    try:
        content = json.loads(files[name])
    except (KeyError, ValueError):
        return
    if not isinstance(content, dict) or not content:
        return
    key, roll = draw.choice(sorted(content)), draw.random()
    if extra is not None:
        content |= extra
    elif roll < 0.7:
        content[key] = draw.choice((*values, content[draw.choice(sorted(content))]))
    elif roll < 0.85:
        del content[key]
    else:
        content = draw.choice(
            ([content], {"config": content}, {**content, "x": 1}, {**content, "num_class_embeds": 10}, key, None)
        )
    files[name] = json.dumps(content).encode()


def _beside(files: Files, draw: Random) -> None:
    """Put a file beside the model: an index, a card, shards, a variant."""
    roll = draw.random()
    if roll < 0.3:
        files["model_index.json"] = json.dumps(draw.choice(PIPELINES)).encode()
    elif roll < 0.6:
        files["card.json"] = draw.choice((json.dumps(draw.choice(CARDS)).encode(), b"[" * 10**5, b"{", b"\xff", b""))
    elif roll < 0.8:
        weights = _read(files)
        names = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        places = {key: draw.choice(names) for key in sorted(weights)}
        for name in names:
            files[name] = save({key: value for key, value in weights.items() if places[key] == name})
        if draw.random() < 0.4:
            places[draw.choice(sorted(places) or ["x"])] = draw.choice(("", "../x", "/etc/passwd", "x.safetensors", names[0]))
        index = {
            "metadata": {},
            "weight_map": {key: Path(name).name if name in names else name for key, name in places.items()},
        }
        files["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
            draw.choice((index, index, index, {}, [], {"weight_map": 5}))
        ).encode()
        files.pop(WEIGHTS, None)
    else:
        name = draw.choice(("diffusion_pytorch_model.fp16.safetensors", "model.safetensors", "diffusion_pytorch_model.bin"))
        files[f"unet/{name}"] = files.pop(WEIGHTS, b"")


def _read(files: Files) -> dict[str, torch.Tensor]:
    """Return the weights as they are after earlier changes."""
    try:
        return load(files[WEIGHTS])
    except Exception:
        return load(valid()[WEIGHTS])


CHANGES: tuple[Callable[[Files, Random], None], ...] = (
    _keys,
    _keys,
    _tensors,
    _tensors,
    _bytes,
    _header,
    _config,
    _config,
    _schedule,
    _schedule,
    _beside,
    _beside,
)
