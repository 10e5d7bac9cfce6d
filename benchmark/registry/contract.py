"""The contract of plugins. `check NAME` and the tests examine it for plugins of this package and of third parties.

Each rule is a function that returns the first problem that it finds, or None. A rule that raises an error has failed too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmark.base import config
from benchmark.base.errors import UserError
from benchmark.base.events import Step, evaluations, watching
from benchmark.base.seeds import stream
from benchmark.base.spec import parse_one
from benchmark.clients.toy import PlainDefense, Toy, toy
from benchmark.disclosure import User
from benchmark.matching.problem import Backend
from benchmark.plugins import Attack, Dataset, Defense
from benchmark.registry import Plugin, Registry, load
from benchmark.registry.imports import reachable
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, PublicParameters, Reconstruction

BUDGET = 3
"""The budget of an attack while it is examined, in evaluations."""

OPEN_TO_ATTACKS = frozenset(
    {
        "benchmark",
        "benchmark.attacks",
        "benchmark.closed_form",
        "benchmark.diffusion",
        "benchmark.base",
        "benchmark.base.errors",
        "benchmark.base.events",
        "benchmark.base.machine",
        "benchmark.disclosure",
        "benchmark.matching",
        "benchmark.outlook",
        "benchmark.plugins",
        "benchmark.base.practice",
        "benchmark.base.ranges",
        "benchmark.scenario",
        "benchmark.types",
        "benchmark.vectors",
    }
)
"""Modules that an attack may import, in addition to `OPEN_PACKAGES`.

`benchmark.base.seeds` is not among them. With it an attack could draw the private noise again.
"""

OPEN_PACKAGES = ("benchmark.attacks.", "benchmark.closed_form.", "benchmark.diffusion.", "benchmark.matching.")
"""Packages of which an attack may import every module."""


@dataclass(frozen=True)
class Finding:
    """The result of one rule.

    Attributes:
        rule: the rule.
        problem: how the plugin breaks it, None if it keeps it.
    """

    rule: str
    problem: str | None


def examine(name: str, registry: Registry) -> Iterator[Finding]:
    """Examine every plugin of that name. The name of a data set may carry its argument, as `folder:PATH` does.

    Raises:
        UserError: there is no such plugin, or its fields cannot be filled.
    """
    spec = parse_one(name)
    for plugin in registry.find(spec.name.partition(":")[0]):
        budgeted = plugin.kind == "attack" and "evaluations" in config.field_names(load(plugin))
        _, instance = registry.create(plugin.kind, spec, {"evaluations": BUDGET} if budgeted else {})
        rules: Mapping[str, Callable[[Plugin, Any], str | None]] = {**COMMON, **RULES[plugin.kind]}
        for rule, check in rules.items():
            yield Finding(f"{plugin.kind} {name}: {rule}", _problem(check, plugin, instance))


def _problem(check: Callable[[Plugin, Any], str | None], plugin: Plugin, instance: Any) -> str | None:
    try:
        return check(plugin, instance)
    except UserError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _documented(plugin: Plugin, instance: Any) -> str | None:
    if not plugin.summary:
        return "the module has no docstring"
    return None if plugin.citation else "the docstring has no line 'Source: ...'"


def _frozen(plugin: Plugin, instance: Any) -> str | None:
    if not dataclasses.is_dataclass(instance) or not getattr(instance, "__dataclass_params__").frozen:  # noqa: B009
        return "it is not a frozen dataclass"
    hash(instance)
    return None


def _reaches(plugin: Plugin, attack: Attack) -> str | None:
    """Walk the graph of imports through this package, from the source text alone."""
    for name, _ in reachable(plugin.path, plugin.module, lambda name: _is_open(name) and name != "benchmark.plugins"):
        if name.partition(".")[0] == "benchmark" and not _is_open(name):
            return f"it imports {name}"
    return None


def _is_open(name: str) -> bool:
    return name in OPEN_TO_ATTACKS or name.startswith(OPEN_PACKAGES)


def _observations(attack: Attack) -> tuple[Toy, list[Observation]]:
    scene = toy()
    return scene, [scene.observe(PlainDefense())]


def _run(attack: Attack, observations: Sequence[Observation], seed: int = 1) -> list[Reconstruction]:
    return attack.run(observations, stream(seed, "attack"))


def _needs(plugin: Plugin, attack: Attack) -> str | None:
    if not all(isinstance(need, Capability) for need in attack.needs):
        return "needs holds something else than Capability"
    listed = {need.value for need in attack.needs}
    if listed != set(plugin.capabilities("needs")):
        return f"its source text says {plugin.capabilities('needs')}, the class {sorted(listed)}"
    fields = {f.name for f in dataclasses.fields(PublicParameters)}
    unknown = attack.adapts_to - fields
    return f"adapts_to names {sorted(unknown)}, which are no public parameters" if unknown else None


def _engine(plugin: Plugin, attack: Attack) -> str | None:
    _, observations = _observations(attack)
    steps: list[Step] = []
    with watching(steps.append):
        _run(attack, observations)
    unlisted = sorted(PublicParameters.used_by(User.ENGINE) - attack.adapts_to)
    if unlisted and {step.backend for step in steps} & set(Backend):
        return f"adapts_to lacks {', '.join(unlisted)}, which the engine uses: derive it from MatchingAttack"
    return None


def _returns(plugin: Plugin, attack: Attack) -> str | None:
    problems = (_returned(attack, scene) for scene in (toy(), toy(batch=1, local_steps=2, clients=2)))
    return next((problem for problem in problems if problem), None)


def _returned(attack: Attack, scene: Toy) -> str | None:
    observations = [scene.observe(PlainDefense()) for _ in range(2)]
    rebuilt = _run(attack, observations)
    if len(rebuilt) != 2:
        return f"{len(rebuilt)} reconstructions for 2 observations"
    for observation, reconstruction in zip(observations, rebuilt, strict=True):
        if tuple(reconstruction.images.shape) != observation.batch_shape:
            return f"images of shape {tuple(reconstruction.images.shape)}, but the private ones have {observation.batch_shape}"
        if reconstruction.images.requires_grad:
            return "images still require gradients"
        if not torch.isfinite(reconstruction.images).all():
            return "images that are not finite"
    return None


def _budgeted(plugin: Plugin, attack: Attack) -> str | None:
    _, observations = _observations(attack)
    counted: list[Step] = []
    with watching(counted.append):
        reported = _run(attack, observations)[0].evaluations
    if reported < (spent := evaluations(counted)):
        return f"it reports {reported} evaluations, but {spent} were counted"
    return None if reported <= attack.budget else f"it spent {reported} evaluations of {attack.budget}"


def _repeats(plugin: Plugin, attack: Attack) -> str | None:
    _, observations = _observations(attack)
    before = torch.get_rng_state()
    first, second = _run(attack, observations)[0], _run(attack, observations)[0]
    if not torch.equal(first.images, second.images):
        return "the same generator gives other images"
    if not torch.equal(before, torch.get_rng_state()):
        return "it draws from torch's global random state instead of its generator"
    return None


def _leaves(plugin: Plugin, attack: Attack) -> str | None:
    _, observations = _observations(attack)
    before = copy.deepcopy(observations[0])
    _run(attack, observations)
    changed = _difference(before, observations[0])
    return f"it changed the observation's {changed}" if changed else None


def _difference(a: Observation, b: Observation) -> str | None:
    for name in ("mean_colour", "timesteps", "noise"):
        if not torch.equal(getattr(a, name), getattr(b, name)):
            return name
    if any(not torch.equal(a.update[name], b.update[name]) for name in a.update):
        return "update"
    assert a.prior is not None and b.prior is not None
    for name, before, after in (("network", a.network, b.network), ("prior", a.prior.network, b.prior.network)):
        if any(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True)):
            return name
    return None


def _blind(plugin: Plugin, attack: Attack) -> str | None:
    scene, observations = _observations(attack)
    before = _run(attack, observations)[0].images
    for truth in (scene.victim.images, scene.victim.noise, *scene.network.parameters()):
        truth.detach().fill_(float("nan"))
    scene.victim.timesteps.fill_(-1)
    after = _run(attack, observations)[0].images
    return None if torch.equal(before, after) else "poisoning the truth changed its images"


def _survives(plugin: Plugin, attack: Attack) -> str | None:
    _, observations = _observations(attack)
    broken = {name: torch.full_like(value, float("nan")) for name, value in observations[0].update.items()}
    good, bad = observations[0], dataclasses.replace(observations[0], update=broken)
    rebuilt = _run(attack, [bad, good])
    if rebuilt[1].diverged is not None:
        return "an update that is not finite made the next victim diverge"
    if not attack.control and rebuilt[0].diverged is None:
        return "an update that is not finite was not reported as diverged"
    return None


def _hides(plugin: Plugin, defense: Defense) -> str | None:
    listed = {capability.value for capability in defense.hides}
    if listed != set(plugin.capabilities("hides")):
        return f"its source text says {plugin.capabilities('hides')}, the class {sorted(listed)}"
    shown = toy().observe(defense).grants & defense.hides
    return f"the observation still grants {sorted(c.value for c in shown)}" if shown else None


def _update(plugin: Plugin, defense: Defense) -> str | None:
    observation = toy(batch=1, local_steps=2, clients=2).observe(defense)
    shapes = {name: p.shape for name, p in observation.network.named_parameters()}
    for name, value in observation.update.items():
        if shapes.get(name) != value.shape:
            return f"'{name}' of shape {tuple(value.shape)} is not a parameter of the network"
        if not torch.isfinite(value).all():
            return f"'{name}' is not finite"
    return None


def _used(plugin: Plugin, defense: Defense) -> str | None:
    public = defense.public(Scenario(clients=2))
    used = frozenset[str]().union(*(load(attack).adapts_to for attack in Registry().all("attack")))
    unused = sorted(public.disclosed - used - public.used_by(User.LABEL))
    return f"no attack uses {', '.join(unused)}" if unused else None


def _defense_repeats(plugin: Plugin, defense: Defense) -> str | None:
    before = torch.get_rng_state()
    first, second = toy().observe(defense).update, toy().observe(defense).update
    if any(not torch.equal(first[name], second[name]) for name in first):
        return "the same generator gives another update"
    return None if torch.equal(before, torch.get_rng_state()) else "it draws from torch's global random state"


def _client_unharmed(plugin: Plugin, defense: Defense) -> str | None:
    scene = toy()
    before, weights = copy.deepcopy(scene.victim), copy.deepcopy(scene.network.state_dict())
    scene.observe(defense)
    if not all(torch.equal(getattr(before, n), getattr(scene.victim, n)) for n in ("images", "timesteps", "noise")):
        return "it changed the client's images, timesteps or noise"
    if any(not torch.equal(weights[name], value) for name, value in scene.network.state_dict().items()):
        return "it changed the client's weights"
    return "it left the network in training mode" if scene.network.training else None


def _separate(plugin: Plugin, defense: Defense) -> str | None:
    """Check that granted tensors and the update share no storage with the truth."""
    scene = toy()
    observation = scene.observe(defense)
    truth = [scene.victim.images, scene.victim.timesteps, scene.victim.noise, *scene.network.parameters()]
    held = {tensor.untyped_storage().data_ptr() for tensor in truth}
    shown = [
        *observation.update.values(),
        *observation.network.parameters(),
        observation.mean_colour,
        observation.timesteps,
        observation.noise,
    ]
    shared = any(t is not None and t.untyped_storage().data_ptr() in held for t in shown)
    return "the observation shares storage with the truth" if shared else None


def _pictures(plugin: Plugin, dataset: Dataset) -> str | None:
    for pictures in (dataset.victims(2, 16, stream(0, "a")), dataset.public(16)):
        for picture in pictures:
            image = picture.image
            if tuple(image.shape) != (3, 16, 16) or image.dtype != torch.float32:
                return f"an image of shape {tuple(image.shape)} and type {image.dtype}, not (3, 16, 16) float32"
            if not (image.min() >= -1 and image.max() <= 1):
                return f"an image with values from {image.min():g} to {image.max():g}, not in [-1, 1]"
    return None


def _dataset_repeats(plugin: Plugin, dataset: Dataset) -> str | None:
    first, second = (dataset.victims(2, 16, stream(0, "a")) for _ in range(2))
    same = all(torch.equal(a.image, b.image) and a.source == b.source for a, b in zip(first, second, strict=True))
    return None if same else "the same generator gives other images"


def _disjoint(plugin: Plugin, dataset: Dataset) -> str | None:
    public = {picture.source for picture in dataset.public(16)}
    if not public:
        return "there are no public images"
    private = {p.source for seed in range(20) for p in dataset.victims(2, 16, stream(seed, "a"))}
    return f"both public and private: {sorted(public & private)}" if public & private else None


COMMON: Mapping[str, Callable[[Plugin, Any], str | None]] = {
    "its docstring says what it is and where it comes from": _documented,
    "it is a frozen, hashable dataclass": _frozen,
}

RULES: Mapping[str, Mapping[str, Callable[[Plugin, Any], str | None]]] = {
    "attack": {
        "it imports no data set, no client and no judge": _reaches,
        "its source text and its class list the same needs": _needs,
        "if it searches with the engine, it adapts to what the engine uses": _engine,
        "it returns one finite reconstruction of all private images per victim": _returns,
        "it keeps its budget of evaluations": _budgeted,
        "the same generator gives the same images, and no other randomness is used": _repeats,
        "it leaves the observation as it was": _leaves,
        "poisoned truth changes nothing": _blind,
        "an update that is not finite diverges alone": _survives,
    },
    "defense": {
        "its source text and its class list what it hides, and nothing of it is granted": _hides,
        "an attack uses what it discloses": _used,
        "the update fits the network and is finite": _update,
        "the same generator gives the same update, and no other randomness is used": _defense_repeats,
        "the client's data and weights stay as they were": _client_unharmed,
        "the observation shares no storage with the truth": _separate,
    },
    "dataset": {
        "images are (3, S, S) float32 in [-1, 1]": _pictures,
        "the same generator gives the same images": _dataset_repeats,
        "public and private sources are disjoint": _disjoint,
    },
}
