"""The scenario axis: the client's practice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scenario:
    """How a client trains in one round.

    Attributes:
        image_size: side of the square images in pixels; none takes the model's own.
        batch_size: private images B in a batch (under Poisson sampling: in expectation).
        local_steps: steps before the client sends its update; only 1 is built.
        clients: clients whose updates are summed before the server sees them; only 1 is built.
        timesteps: `uniform`, or fixed for a study: one for every image, or one per image of the batch.
        sampling: `fixed` batches, or `poisson`: each of the client's batch_size / sample_rate images joins by a coin of its
            own. A batch that comes out empty has nothing to rebuild, so it is drawn again; the attack is granted the size.
        sample_rate: probability of each local image to be in the batch; below 1 only with Poisson sampling.
    """

    image_size: int | None = None
    batch_size: int = 1
    local_steps: int = 1
    clients: int = 1
    timesteps: Literal["uniform"] | int | tuple[int, ...] = "uniform"
    sampling: Literal["fixed", "poisson"] = "fixed"
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.sample_rate < 1 and self.sampling != "poisson":
            raise ValueError("a sample_rate below 1 needs 'sampling: poisson': fixed batches amplify no privacy")
        local = self.batch_size / self.sample_rate
        if abs(local - round(local)) > 1e-9 * local:
            raise ValueError(f"batch_size / sample_rate is the number of the client's images and must be whole, not {local:g}")
        if isinstance(self.timesteps, tuple):
            if self.sampling == "poisson":
                raise ValueError("timesteps per image need 'sampling: fixed', since Poisson batches vary in size")
            if len(self.timesteps) != self.batch_size:
                raise ValueError(f"{len(self.timesteps)} timesteps for a batch of {self.batch_size}")

    def _check_numbers(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise ValueError(f"image_size must be from 8 to 1024, not {self.image_size}")
        for name in ("batch_size", "local_steps", "clients"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("local_steps", "clients"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} above 1 is not built yet")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate must be above 0 and at most 1, not {self.sample_rate:g}")

    @property
    def fixed_timesteps(self) -> tuple[int, ...]:
        """The timesteps that are fixed, empty where they are drawn uniformly."""
        if self.timesteps == "uniform":
            return ()
        return (self.timesteps,) if isinstance(self.timesteps, int) else tuple(self.timesteps)

    @property
    def timestep_label(self) -> str:
        """The timesteps as a table shows them: `uniform`, `200` or `100 200`."""
        return " ".join(map(str, self.fixed_timesteps)) or "uniform"
