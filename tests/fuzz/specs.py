"""Command lines of every verb, built from option names and hostile values."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.fuzz import images, model_files, nasty
from tests.fuzz.harness import HERE, Case

NAMES = (
    "none", "dlg", "constant_image", "tiny", "tiny:trained", "photos", "smoke", "gradient_pruning[keep=0.1]",
    "folder:pictures", "pictures", "model", "./model", "folder:com,ma", "folder:[x]", "com,ma", "[x]", "grid.yaml",
    "missing", "run", HERE, f"folder:{HERE}/pictures", f"{HERE}/model", "google/ddpm-cifar10-32", "a/b", "a/b/c",
    "lsun_bedroom", "cifar10:pictures", "celeba_hq:pictures", "model[prior=model]", "tiny[prior=model]",
    "tiny[prior=~nosuchuser]", "tiny[steps=16]", "model[steps=16]", "defense", "attack", "loop", "dangling", "link",
)  # fmt: skip

FIELDS = (
    "attack.dlg.evaluations", "attack.dlg.restarts", "attack.adam_l2.lr", "defense.clipping.clip",
    "defense.dp_sgd.noise_multiplier", "attack.gidm.preset", "attack.dlg.x", "attack.x.evaluations", "dataset.folder.path",
    "dataset.photos.x", "attack.dlg", "model.tiny.steps",
)  # fmt: skip

PLUGIN_FIELDS = (
    "dlg[evaluations={}]", "adam_l2[lr={}]", "gradient_pruning[keep={}]", "clipping[clip={}]",
    "dp_sgd[noise_multiplier={}]", "tiny[steps={}]", "withhold[layers={}]", "quantisation[bits={}]",
    "gaussian_noise[ratio={}]", "timestep_range[least={}]", "tiny[prediction={}]", "folder:{}", "gidm[preset={}]",
    "photos[x={}]", "lora[rank={}]", "tiny[prior={}]",
)  # fmt: skip

RUN = ("--grid", "--attacks", "--defenses", "--datasets", "--models", "--victims", "--trials", "--device", "--out", "--include",
       "--cell-timeout", "--set", "--display")  # fmt: skip
FLAGS = (
    "--force",
    "--only-failed",
    "--version",
    "--help",
    "--dry",
    "--dry-run=1",
    "--force=",
    "-h",
    "--no-such",
    "--",
    "-",
    "extra",
)
TRAIN = ("--dataset", "--model", "--steps", "--out", "--batch-size", "--lr", "--seed", "--save-every", "--device", "--include")
COUNTED = frozenset({"--victims", "--trials", "--cell-timeout", "--steps", "--batch-size", "--lr", "--seed", "--save-every"})
LONG = frozenset({"1e3", "2", "+1", "007", "2147483648", "4294967297", "9223372036854775807", "1_000"})
"""Numbers of steps that would be trained for."""
WHOLE_DISK = re.compile(r":(/|(\.\./)*\.\.)/?$")
"""The end of a data set that would be searched for hours."""


def case(seed: int) -> Case:
    """Return one command line."""
    draw = Random(seed)
    words = draw.choice((_run, _run, _run, _run, _train, _train, _other, _other))(draw)
    if draw.random() < 0.05:
        words.insert(draw.randrange(len(words) + 1), draw.choice((*FLAGS, nasty.text(draw))))
    if words[:1] == ["run"] and "--dry-run" not in words:  # the aim is parsing
        words.append("--dry-run")
    return Case([words], _prepare, own=tuple(_written(words)))


def _run(draw: Random) -> list[str]:
    words = ["run", "--grid", "smoke", "--attacks", "constant_image", "--defenses", "none", "--victims", "1", "--out", "out"]
    for _ in range(draw.choice((1, 1, 2, 3))):
        if draw.random() < 0.1:
            words.append(draw.choice(FLAGS))
            continue
        option = draw.choice(RUN)
        value = (
            f"{draw.choice((*FIELDS, nasty.text(draw)))}={_value(option, draw)}" if option == "--set" else _value(option, draw)
        )
        words += draw.choice(([option, value], [option, value], [f"{option}={value}"], [option]))
    return [*words, "--dry-run"]


def _train(draw: Random) -> list[str]:
    values = {"--dataset": "folder:pictures", "--model": "model", "--steps": "1", "--out": "out", "--batch-size": "2"}
    for _ in range(draw.choice((1, 1, 1, 2))):
        option = draw.choice(TRAIN)
        value = _value(option, draw)
        values[option] = "0" if option == "--steps" and value.strip() in LONG else value
    if draw.random() < 0.1:
        del values[draw.choice(sorted(values))]
    return ["train", *(word for pair in values.items() for word in pair)]


def _other(draw: Random) -> list[str]:
    value: Callable[[], str] = lambda: draw.choice((nasty.text(draw), nasty.text(draw), draw.choice(NAMES)))  # noqa: E731
    verb = draw.choice(("list", "report", "compare", "check", "info", "", "help"))
    plain = {
        "list": ["list", draw.choice(("attacks", "models", "grids", "things", value()))],
        "report": ["report", value()],
        "compare": ["compare", value(), value(), value()],
        "check": ["check", draw.choice([name for name in (value(), "dlq", "none", "folder:pictures") if "dlg" not in name])],
        "info": [
            "info",
            "--device",
            draw.choice((value(), "cpu", "cuda:99", "cuda:", "cuda:-1", f"cuda:{nasty.LONG_INTEGER}")),
        ],
        "help": [value()],
    }.get(verb, [])
    if draw.random() < 0.2 and verb in ("list", "check"):
        plain += ["--include", value()]
    return plain[: draw.randint(0, len(plain))] if draw.random() < 0.1 else plain


def _value(option: str, draw: Random) -> str:
    value = _any_value(option, draw)
    if option == "--out" and (value.startswith("/") or ".." in value):
        return f"out/{value.strip('/.')}"  # nothing is written outside of the sandbox
    return WHOLE_DISK.sub(":nowhere", value)


def _any_value(option: str, draw: Random) -> str:
    roll = draw.random()
    if option in COUNTED:
        return nasty.number(draw) if roll < 0.8 else nasty.text(draw)
    if roll < 0.35:
        return nasty.text(draw)
    if roll < 0.6:
        return draw.choice(PLUGIN_FIELDS).replace("{}", draw.choice((nasty.number(draw), nasty.text(draw))))
    if roll < 0.7:
        return f"{draw.choice(NAMES)}{draw.choice((',', '+', ''))}{nasty.text(draw)}"
    return draw.choice(NAMES)


def _prepare(place: Path) -> None:
    for folder in ("pictures", "com,ma", "[x]"):
        (place / folder).mkdir()
        for number in range(4):
            (place / folder / f"{number}.png").write_bytes(images.picture(number, 16, "PNG"))
    for name, content in model_files.valid().items():
        (place / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "model" / name).write_bytes(content)
    (place / "grid.yaml").write_text(
        "title: t\ndatasets: [photos]\nmodels: [tiny]\ndefenses: [none]\nattacks: [constant_image]\n"
    )
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    (place / "link").symlink_to("pictures")


def _written(words: list[str]) -> list[str]:
    """Return the names in the sandbox that `train` may write to. A dry run and the other verbs write nothing."""
    places = [right for left, right in pairwise(words) if left == "--out" and words[0] == "train"]
    heads = [place.replace(HERE, "").lstrip("/").removeprefix("./").partition("/")[0] for place in places]
    heads += ["pictures"] if "link" in heads else []  # where that leads
    inside = ["unet", "scheduler", "samples.png", "card.json", "training.pt"] if {"", "."} & set(heads) else []
    return ["out", *heads, *inside, *(["home"] if "~" in "".join(places) else [])]
