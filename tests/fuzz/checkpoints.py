"""Directories of diffusers models, small and damaged, as a model, as a prior, and as the start of a training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load

from tests.fuzz import images
from tests.fuzz.harness import HERE, Case, Outcome
from tests.fuzz.model_files import CHANGES, FLOW, OTHER_PROCESSES, SAME_PROCESS, SCHEDULER, STEPS, valid

GRID = "{title: t, datasets: [photos], models: [tiny], defenses: [none], attacks: [constant_image], victims: 1}"

WRAPPERS = ("_orig_mod.", "module.", "model.", "unet.", "network.")
"""Prefixes that known wrappers give to the keys of a state dict."""


def case(seed: int) -> Case:
    """Return commands on a model whose files were changed in one to three ways."""
    draw = Random(seed)
    files = dict(valid(*draw.choice((((4, 8), 8), ((4, 8), 16), ((8, 16), 8)))))
    for _ in range(draw.choice((0, 1, 1, 1, 1, 2, 3))):
        draw.choice(CHANGES)(files, draw)
    if draw.random() < 0.1:
        files = {name.removeprefix("unet/").removeprefix("scheduler/"): content for name, content in files.items()}
    run = ["run", "--grid", "grid.yaml", "--out", "out", "--dry-run"]
    role = draw.choice(("model",) * 6 + ("prior",) * 3 + ("train",))
    asked = f"{HERE}/bad[schedule=linear,steps={STEPS}]" if role != "prior" and draw.random() < 0.1 else f"{HERE}/bad"
    if role == "train":
        command = [
            "train",
            "--dataset",
            "folder:pictures",
            "--model",
            asked,
            "--steps",
            "1",
            "--out",
            "out",
            "--batch-size",
            "2",
        ]
    else:
        command = [*run, "--models", asked if role == "model" else f"{HERE}/good[prior={HERE}/bad]"]

    def prepare(place: Path) -> None:
        for name, content in (
            *((f"bad/{name}", c) for name, c in files.items()),
            *((f"good/{n}", c) for n, c in valid().items()),
        ):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        (place / "grid.yaml").write_text(GRID)
        (place / "pictures").mkdir()
        for number in range(6):
            (place / "pictures" / f"{number}.png").write_bytes(images.picture(number, 16, "PNG"))

    def check(place: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
        if outcomes[0].code == 0:
            yield from _accepted(place / "bad", asked.replace(HERE, str(place)))

    return Case([command], prepare, check)


def _accepted(place: Path, asked: str) -> Iterator[tuple[str, str]]:
    """Yield what differs between the model that was accepted and its files."""
    from benchmark.base.spec import parse_one
    from benchmark.diffusion.models import build_network, build_process, resolve_model

    model = resolve_model(parse_one(asked))
    found = build_network(model, 0).unet.state_dict()
    if not all(value.isfinite().all() for value in found.values()):
        yield "an accepted model has weights that are not finite", asked
    problems = [_difference(found, weights) for weights in _weights(place)]
    if all(problems):
        yield "an accepted model has not the weights of its file", str(problems[-1])
    process = build_process(model)
    signal = process.signal
    if not (signal.isfinite().all() and (signal.diff() <= 0).all() and (signal >= 0).all() and (signal <= 1).all()):
        yield "an accepted schedule is no falling one in [0, 1]", f"{signal[0]:g} to {signal[-1]:g}"
    for scheduler in (place / SCHEDULER, place / "scheduler_config.json"):
        if scheduler.is_file():
            yield from _scheduler(json.loads(scheduler.read_text()), process.level)
            break
    index = place / "model_index.json"
    parts = json.loads(index.read_text()) if index.is_file() else None
    if isinstance(parts, dict) and any(isinstance(parts.get(name), list) and all(parts[name]) for name in ("vqvae", "vae")):
        yield "a latent model was accepted", json.dumps(parts)


def _scheduler(config: dict[str, Any], level: torch.Tensor) -> Iterator[tuple[str, str]]:
    import diffusers

    name = str(config.get("_class_name"))
    if name in OTHER_PROCESSES:
        yield "a process that is not known was accepted", name
    if name in SAME_PROCESS:
        theirs = getattr(diffusers, name).from_config(config).alphas_cumprod
        if theirs.shape != level.shape or not torch.allclose(theirs.float(), level, atol=1e-6):
            yield "an accepted schedule is not diffusers' own", name
    if name == FLOW and not torch.equal(getattr(diffusers, name).from_config(config).sigmas.flip(0), level):
        yield "an accepted schedule is not diffusers' own", name


def _weights(place: Path) -> list[dict[str, torch.Tensor]]:
    """Return the state dicts that lie in the directory: of each file, and of all shards together."""
    folder = place / "unet" if (place / "unet").is_dir() else place
    each = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            each.append(load(file.read_bytes()))
        except Exception:  # garbage beside the file that was read
            continue
    return [*each, {key: value for part in each for key, value in part.items()}]


def _difference(found: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    plain = {}
    for key, value in weights.items():
        while prefix := next((prefix for prefix in WRAPPERS if key.startswith(prefix)), None):
            key = key.removeprefix(prefix)
        plain[key] = value
    if found.keys() != plain.keys():
        return f"{len(plain.keys() - found.keys())} keys are left over, {len(found.keys() - plain.keys())} are missing"
    return next((key for key, value in found.items() if not torch.equal(value, plain[key].to(value.dtype))), None)
