"""Every discovered plugin keeps the contract, and the contract finds plugins that break it."""

import textwrap

import pytest
from PIL import Image

from benchmark.registry import KINDS, Registry
from benchmark.registry.contract import examine

ON_DISK = {"cifar10", "cifar100", "celeba_hq", "lsun_bedroom"}
"""Data sets that need files on disk. `tests/data` examines them on small files."""

SHORT_SAMPLERS = {"gidm": "gidm[sampler_steps=2]", "prior_sample": "prior_sample[steps=2]"}
"""Plugins whose default sampler takes 16 or 50 steps. The contract does not depend on their number."""

PLUGINS = [(kind, p.name) for kind in KINDS for p in Registry().all(kind) if p.name not in ON_DISK]


@pytest.fixture
def pictures(tmp_path):
    for i in range(12):
        Image.new("RGB", (20, 24), (20 * i, 100, 200 - 10 * i)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_plugin_keeps_the_contract(kind, name, pictures):
    spec = f"{name}:{pictures}" if name == "folder" else SHORT_SAMPLERS.get(name, name)
    findings = list(examine(spec, Registry()))
    assert len(findings) >= 4
    assert [finding for finding in findings if finding.problem] == []


def broken_rules(tmp_path, body, fields="evaluations: int = 5"):
    """Write an attack with this body, and return the contract's rules that it breaks."""
    source = f'''
        """Broken on purpose.

        Source: ours
        """
        import torch
        from dataclasses import dataclass
        from benchmark.plugins import Attack
        from benchmark.types import Reconstruction

        @dataclass(frozen=True)
        class Broken(Attack):
            {fields}

            def run(self, observations, generator):
                {body}
    '''
    (tmp_path / "broken.py").write_text(textwrap.dedent(source))
    return [f.rule for f in examine("broken", Registry([tmp_path])) if f.problem]


GOOD = (
    "Reconstruction(torch.rand(o.batch_shape, generator=generator), 1,"
    " diverged=None if all(torch.isfinite(u).all() for u in o.update.values()) else 'no')"
)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("return []", "one finite reconstruction"),
        ("return [Reconstruction(torch.zeros(1, 3, 2, 2), 1) for o in observations]", "one finite reconstruction"),
        ("return [Reconstruction(torch.rand(o.batch_shape), 1) for o in observations]", "no other randomness"),
        (
            "return [Reconstruction(o.mean_colour.new_zeros(o.batch_shape), 99) for o in observations]",
            "keeps its budget",
        ),
        (
            "[o.mean_colour.add_(1) for o in observations]; return [Reconstruction(torch.zeros(o.batch_shape), 1)"
            " for o in observations]",
            "leaves the observation as it was",
        ),
        ("return [Reconstruction(torch.zeros(o.batch_shape), 1) for o in observations]", "diverges alone"),
    ],
)
def test_a_broken_attack_is_found(tmp_path, body, rule):
    import torch

    state = torch.get_rng_state()
    assert any(rule in broken for broken in broken_rules(tmp_path, body))
    torch.set_rng_state(state)


def test_an_attack_that_does_not_declare_the_engine_is_found(tmp_path):
    body = (
        "from benchmark.matching.engine import Task, match; from benchmark.matching.lbfgs import lbfgs;"
        " from benchmark.matching.objectives import squared_distance;"
        " from benchmark.matching.problem import clean_guess, mean_colour_start;"
        " tasks = [Task(o, {'x_0': mean_colour_start(o)}, 2) for o in observations];"
        " return [s.reconstruction() for s in match(tasks, clean_guess, squared_distance, lbfgs)]"
    )
    silent, declaring = tmp_path / "silent", tmp_path / "declaring"
    silent.mkdir()
    declaring.mkdir()
    (rule,) = broken_rules(silent, body)
    assert "if it searches with the engine" in rule
    declared = "adapts_to = frozenset({'withheld', 'adapter_rank', 'aggregated_clients'}); evaluations: int = 5"
    assert broken_rules(declaring, body, declared) == []


def test_a_public_parameter_that_no_attack_uses_is_found(tmp_path):
    source = '''
        """Discloses what nobody uses.

        Source: ours
        """
        from dataclasses import dataclass
        from benchmark.disclosure import User, parameter
        from benchmark.plugins import Defense
        from benchmark.types import PublicParameters

        @dataclass(frozen=True)
        class More(PublicParameters):
            colour: str | None = parameter(User.ATTACK)

        @dataclass(frozen=True)
        class Chatty(Defense):
            def public(self, scenario):
                return More(colour="red", kept_share=0.5)
    '''
    (tmp_path / "chatty.py").write_text(textwrap.dedent(source))
    problems = [finding.problem for finding in examine("chatty", Registry([tmp_path])) if finding.problem]
    assert problems == ["no attack uses colour"]


def test_a_good_third_party_attack_passes(tmp_path):
    assert broken_rules(tmp_path, f"return [{GOOD} for o in observations]") == []
