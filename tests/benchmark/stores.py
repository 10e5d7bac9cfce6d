"""Run directories made by hand, with cells of given numbers."""

import hashlib

import numpy as np

from benchmark.evaluation.judge import Sample
from benchmark.experiment.store import Record, Status

CONTROLS = ("oracle", "constant_image", "random_guess", "prior_sample")

PRIVACY = dict(
    epsilon_round=1.0, epsilon_total="inf", epsilon_round_rdp=1.5, epsilon_total_rdp="inf", delta=1e-5, sample_rate=0.1,
    sampling="Poisson", rounds=7, adjacency="add or remove one image", accountant="PRV",
)  # fmt: skip


def identity_of(name):
    """A cell's identity, of 32 hexadecimal digits as all are."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


ABC = identity_of("abc")


def config(attack="dlg", defense="none", trial=0, dataset="pictures"):
    return {
        "dataset": {"name": dataset},
        "scenario": {
            "image_size": 8, "batch_size": 1, "local_steps": 1, "local_lr": 0.01, "clients": 1, "order": "known",
            "timesteps": "200", "sampling": "fixed", "sample_rate": 1.0,
        },
        "model": {"name": "tiny", "state": "random", "prediction_type": "epsilon", "prior": "none"},
        "defense": {"name": defense},
        "attack": {"name": attack},
        "trial": trial,
        "victims": 4,
    }  # fmt: skip


def record(identity=ABC, status=Status.OK, **changes):
    values = dict(
        identity=identity, status=status, reason="", config=config(), knows="weights", adaptive=False, control=False,
        budget=7, n_total=1, seconds=1.5, peak_mib=10.0, privacy=None, lpips_missing=None, environment={},
    )  # fmt: skip
    return Record(**{**values, **changes})


def image_sample(victim=0, psnr=10.0, **changes):
    """A sample of a private image of its own photograph; without a PSNR it diverged."""
    picture = np.full((8, 8, 3), 0.1 * victim, dtype=np.float32)
    lost = psnr is None
    measured = {"psnr": psnr, "ssim": None if lost else 0.5, "mse": None if lost else 0.1, "lpips": None}
    values = dict(
        victim=victim, image=0, source=f"source-{victim}", status="diverged" if lost else "ok", reason="", measured=measured,
        success=not lost and psnr >= 30, timestep=200, timestep_estimate=None, timestep_error=None, noise_mse=None,
        predicted_psnr=None, accepted=None, loss=1e-3,
        evaluations=50, original=picture, reconstruction=picture,
    )  # fmt: skip
    return Sample(**{**values, **changes})


def add(store, attack, psnr, defense="none", trial=0, **changes):
    """Save a cell with one image per entry of `psnr`, None for a diverged one, and return its identity."""
    identity = identity_of(f"{attack}-{defense}-{trial}")
    control = attack in CONTROLS
    values = dict(
        config=config(attack, defense, trial), knows="weights+noise+timestep", control=control, budget=0 if control else 50,
        n_total=4, seconds=8.0 if psnr else None, lpips_missing="no weights",
    )  # fmt: skip
    samples = [image_sample(victim, value) for victim, value in enumerate(psnr)]
    store.save(record(identity, **{**values, **changes}), samples)
    return identity
