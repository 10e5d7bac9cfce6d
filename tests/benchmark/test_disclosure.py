"""Tests that a public parameter is declared once, and that everything else follows from the declaration."""

from dataclasses import dataclass, fields

import pytest

from benchmark.attacks.dlg import DLG
from benchmark.attacks.residual import Residual
from benchmark.base.errors import UserError
from benchmark.clients.stack import stack
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.quantisation import Quantisation
from benchmark.disclosure import Release, Scope, User, declaration, parameter
from benchmark.plugins import Defense, MatchingAttack
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True)
class More(PublicParameters):
    """With one parameter more, as it would stand in `PublicParameters`."""

    dropped_share: float | None = parameter(User.DISTANCE, scope=Scope.CLIENT, release=Release.PRUNE)


@dataclass(frozen=True)
class Dropping(Defense):
    def release(self, update, scenario, generator):
        return update

    def public(self, scenario):
        return More(dropped_share=0.5)


def test_a_new_parameter_is_used_voided_and_ordered_as_its_declaration_says():
    assert More.used_by(User.DISTANCE) == PublicParameters.used_by(User.DISTANCE) | {"dropped_share"}
    assert Dropping().public(Scenario()).disclosed == {"dropped_share"}
    assert Dropping().public(Scenario()).for_aggregate().disclosed == set()
    stack({"dropping": Dropping(), "quantisation": Quantisation()})
    with pytest.raises(UserError, match="'clipping' acts before 'dropping'"):
        stack({"dropping": Dropping(), "clipping": Clipping()})


def test_a_parameter_without_a_user_or_without_a_declaration_is_an_error():
    with pytest.raises(TypeError, match="user"):
        parameter()

    @dataclass(frozen=True)
    class Undeclared(PublicParameters):
        secret: float | None = None

    with pytest.raises(TypeError, match="'secret' has no declaration"):
        Undeclared.used_by(User.ENGINE)


def test_what_describes_a_clients_own_update_does_not_describe_the_mean():
    everything = PublicParameters(**{field.name: 1 for field in fields(PublicParameters)})
    void = everything.disclosed - everything.for_aggregate().disclosed
    assert void >= {"kept_share", "update_clip_norm", "gaussian_ratio", "laplace_ratio", "bits"}
    assert void == {field.name for field in fields(PublicParameters) if declaration(field).scope is Scope.CLIENT}


def test_a_granted_timestep_implies_its_range_and_nothing_else():
    public = PublicParameters(least_timestep=500, bits=8)
    assert public.informative(timestep_private=True) == {"least_timestep", "bits"}
    assert public.informative(timestep_private=False) == {"bits"}


def test_releases_follow_from_the_parameters_that_apply():
    assert PublicParameters(clip_norm=1.0, noise_std=1.0).releases == {Release.CLIP, Release.NOISE}
    assert GaussianNoise().public(Scenario()).releases == {Release.NOISE}
    assert PublicParameters(withheld="conv_out").releases == set()


def test_an_attack_that_uses_the_engine_inherits_its_public_parameters():
    engine = PublicParameters.used_by(User.ENGINE)
    assert engine == {"withheld", "adapter_rank", "aggregated_clients"}

    class Plain(MatchingAttack):
        pass

    class Refined(Plain):
        adapts_to = frozenset({"bits"})

    assert Plain.adapts_to == engine
    assert Refined.adapts_to == engine | {"bits"}
    assert DLG.adapts_to == engine | {"least_timestep"}
    assert Residual.adapts_to > DLG.adapts_to | PublicParameters.used_by(User.DISTANCE)
