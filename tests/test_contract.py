"""Every discovered plugin keeps the contract, and the contract notices when one does not."""

import textwrap

import pytest
from PIL import Image

from benchmark.registry import KINDS, Registry
from benchmark.registry.contract import examine

ON_DISK = {"cifar10", "cifar100", "celeba_hq", "lsun_bedroom"}
"""Data sets that must lie on disk; `tests/data` examines them on small files."""

PLUGINS = [(kind, p.name) for kind in KINDS for p in Registry().all(kind) if p.name not in ON_DISK]


@pytest.fixture
def pictures(tmp_path):
    for i in range(12):
        Image.new("RGB", (20, 24), (20 * i, 100, 200 - 10 * i)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_plugin_keeps_the_contract(kind, name, pictures):
    asked = f"{name}:{pictures}" if name == "folder" else name
    findings = list(examine(asked, Registry()))
    assert len(findings) >= 4
    assert [finding for finding in findings if finding.problem] == []


def broken_attack(tmp_path, body, fields="evaluations: int = 5"):
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
def test_a_broken_attack_is_noticed(tmp_path, body, rule):
    import torch

    state = torch.get_rng_state()
    assert any(rule in found for found in broken_attack(tmp_path, body))
    torch.set_rng_state(state)


def test_an_attack_that_does_not_say_that_it_searches_with_the_engine_is_noticed(tmp_path):
    body = (
        "from benchmark.matching.engine import Task, match; from benchmark.matching.lbfgs import lbfgs;"
        " from benchmark.matching.objectives import squared_distance; from benchmark.matching.problem import flat, granted;"
        " tasks = [Task(o, {'x_0': flat(o)}, 2) for o in observations];"
        " return [s.reconstruction() for s in match(tasks, granted, squared_distance, lbfgs)]"
    )
    silent, telling = tmp_path / "silent", tmp_path / "telling"
    silent.mkdir()
    telling.mkdir()
    (rule,) = broken_attack(silent, body)
    assert "where it searches with the engine" in rule
    told = "adapts_to = frozenset({'withheld', 'adapter_rank', 'aggregated_clients'}); evaluations: int = 5"
    assert broken_attack(telling, body, told) == []


def test_a_public_parameter_that_no_attack_takes_account_of_is_noticed(tmp_path):
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


def test_a_good_attack_of_a_third_party_passes(tmp_path):
    assert broken_attack(tmp_path, f"return [{GOOD} for o in observations]") == []
