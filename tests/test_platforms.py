"""The platforms' own code on the same tensors and random numbers. `tox -e platforms` installs the platforms.

Step sizes and steps are powers of two, so that the two scales differ by an exact factor.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.defenses.local_dp import LocalDP
from benchmark.defenses.percentile_privacy import PercentilePrivacy
from benchmark.defenses.svt_privacy import SVTPrivacy
from benchmark.diffusion import secaggplus
from benchmark.scenario import Scenario

STEPS, LR = 4, 2.0**-6
SCENARIO = Scenario(local_steps=STEPS, local_lr=LR)
SCENE = toy(batch=1)
UPDATE = SCENE.step().gradient()
CHANGE = {name: (-SCENARIO.scale * value).numpy() for name, value in UPDATE.items()}
MEDIAN = float(torch.cat([value.abs().flatten() for value in UPDATE.values()]).median())

# The platforms' own imports warn.
pytestmark = pytest.mark.filterwarnings("default")


def filtered_by_nvflare(platform_filter):
    """Return the change of the weights after a filter of NVFlare, in the units of the update."""
    dxo = pytest.importorskip("nvflare.apis.dxo", reason="nvflare is not installed")
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable

    data = {name: value.copy() for name, value in CHANGE.items()}
    message = dxo.DXO(dxo.DataKind.WEIGHT_DIFF, data, {dxo.MetaKey.NUM_STEPS_CURRENT_ROUND: STEPS})
    sent = platform_filter.process_dxo(message, Shareable(), FLContext()).data
    return {name: torch.from_numpy(value) / -SCENARIO.scale for name, value in sent.items()}


@pytest.mark.parametrize(("percentile", "gamma"), [(10, 0.01), (10, LR * MEDIAN), (0, LR * MEDIAN), (75, 1e-12), (100, 1.0)])
def test_percentile_privacy_is_the_filter_of_nvflare(percentile, gamma):
    platform = pytest.importorskip("nvflare.app_common.filters.percentile_privacy", reason="nvflare is not installed")
    theirs = filtered_by_nvflare(platform.PercentilePrivacy(percentile, gamma))
    ours = PercentilePrivacy(percentile=percentile, gamma=gamma).release(UPDATE, SCENARIO, stream(0, "unused"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=0)
        assert torch.equal(ours[name] == 0, value == 0)


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("values", [{}, {"fraction": 0.6, "epsilon": 1e6, "gamma": LR * MEDIAN, "noise_var": 10.0}])
def test_svt_privacy_is_the_filter_of_nvflare(replace, values):
    platform = pytest.importorskip("nvflare.app_common.filters.svt_privacy", reason="nvflare is not installed")
    ours = SVTPrivacy(replace=replace, **values)
    seed = int(torch.randint(2**32, (), generator=stream(0, "defense")))
    kept, _ = np.random.get_state(), np.random.seed(seed)  # noqa: NPY002
    try:
        theirs = filtered_by_nvflare(platform.SVTPrivacy(replace=replace, **values))
    finally:
        np.random.set_state(kept)  # noqa: NPY002
    released = ours.release(UPDATE, SCENARIO, stream(0, "defense"))
    for name, value in theirs.items():
        torch.testing.assert_close(released[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_local_dp_clips_and_disturbs_as_the_mod_of_flower(clip):
    """The mod adds the clipped change to the weights again, so its result has the rounding of weights."""
    quiet, noisy = (LocalDP(clipping_norm=clip, sensitivity=sensitivity, epsilon=2.0) for sensitivity in (0.0, 0.5))
    ours = torch.cat([value.flatten() for value in quiet.release(UPDATE, SCENARIO, stream(0, "unused")).values()])
    theirs = changed_by_flower(quiet)
    torch.testing.assert_close(theirs, -SCENARIO.scale * ours, rtol=1e-5, atol=2.0**-23)
    assert float((changed_by_flower(noisy) - theirs).std()) == pytest.approx(noisy.sigma, rel=0.05)
    assert noisy.public(SCENARIO).noise_std * SCENARIO.scale == pytest.approx(noisy.sigma)


def changed_by_flower(defense):
    """Return the change of the weights that the server sees from a client with Flower's mod."""
    platform = pytest.importorskip("flwr.clientapp.mod.localdp_mod", reason="flwr is not installed")
    from flwr.app import Array, ArrayRecord, RecordDict

    def message(arrays):
        content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()})})
        return SimpleNamespace(content=content, has_error=lambda: False)

    before = {name: SCENE.network.get_parameter(name).detach().numpy() for name in UPDATE}
    after = {name: value + CHANGE[name] for name, value in before.items()}
    mod = platform.LocalDpMod(defense.clipping_norm, defense.sensitivity, defense.epsilon, defense.delta)
    reply = mod(message(before), None, lambda request, context: message(after))
    sent = reply.content["arrays"].to_numpy_ndarrays()
    return torch.cat([torch.from_numpy(new - old).flatten() for new, old in zip(sent, before.values(), strict=True)])


@pytest.mark.parametrize("examples", [3, 16, 1000, 1500])
def test_received_weights_are_those_of_secaggplus(examples):
    """The masks are left out: they cancel. The rest is the code of the client and of the server."""
    quantization = pytest.importorskip("flwr.common.secure_aggregation.quantization", reason="flwr is not installed")
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_multiply
    from flwr.server.workflow import SecAggPlusWorkflow

    settings = SecAggPlusWorkflow(3, 2)
    clip, levels, most = settings.clipping_range, settings.quantization_range, settings.max_weight
    assert (clip, levels, most) == (secaggplus.CLIP, secaggplus.LEVELS, secaggplus.MAX_EXAMPLES)
    weights = 4 * torch.randn(3, 1000, generator=stream(0, "weights"))
    kept, _ = np.random.get_state(), np.random.seed(0)  # noqa: NPY002
    try:
        uniform = torch.from_numpy(np.random.rand(3, 1000))  # noqa: NPY002
        np.random.seed(0)  # noqa: NPY002
        q_ratio = round(examples / most * levels)
        scaled = parameters_multiply([weights.numpy()], q_ratio / levels)
        (theirs,) = quantization.dequantize(quantization.quantize(scaled, clip, levels), clip, levels)
    finally:
        np.random.set_state(kept)  # noqa: NPY002
    ours = secaggplus.received(weights, examples, uniform)
    torch.testing.assert_close(ours, torch.from_numpy(theirs * (levels / q_ratio)), rtol=1e-12, atol=1e-12)
    assert ((ours - weights).abs() <= secaggplus.largest_error(weights, examples)).all()
    assert secaggplus.factor(examples) == pytest.approx(examples / 1000, abs=1 / levels)
