"""The scenario axis: the clients' practice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from benchmark.base.ranges import Count, Natural, Positive, Range, Share, check_fields

MOST_IMAGES = 100_000
"""Private images behind one update: more are a mistake, and would not fit into memory."""

MOST_LOCAL_IMAGES = 10_000_000
"""Images of one client from which a Poisson batch is drawn."""


@dataclass(frozen=True)
class Scenario:
    """How clients train in one round, and how the server sees it.

    Every client starts from the same global weights and takes `local_steps` steps of plain SGD, each on a fresh batch.

    Attributes:
        image_size: side of the square images in pixels; none takes the model's own.
        batch_size: private images B in a batch (under Poisson sampling: in expectation).
        local_steps: steps E that a client takes before it sends its update.
        local_lr: step size of a client's SGD, above 0; without effect where a client takes one step.
        clients: clients K that take part. The server sees each one's update, or, under a defense that aggregates, their mean.
        order: whether timesteps and noise, where they are granted, are `known` to come in the order of clients, steps and
            batch, or in an `unknown` one, drawn at random.
        timesteps: `uniform`, or fixed for a study: one for every image, or one per image, client by client and step by step.
        sampling: `fixed` batches, or `poisson`: each of the client's batch_size / sample_rate images joins by a coin of its
            own. A batch that comes out empty has nothing to rebuild, so it is drawn again; the attack is granted the size.
        sample_rate: probability of each local image to be in the batch; below 1 only with Poisson sampling.
    """

    image_size: Annotated[int, Range(8, 1024)] | None = None
    batch_size: Count = 1
    local_steps: Count = 1
    local_lr: Positive = 0.01
    clients: Count = 1
    order: Literal["known", "unknown"] = "known"
    timesteps: Literal["uniform"] | Natural | tuple[Natural, ...] = "uniform"
    sampling: Literal["fixed", "poisson"] = "fixed"
    sample_rate: Share = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.images > MOST_IMAGES:
            raise ValueError(f"at most {MOST_IMAGES} images may lie behind an update, not {self.images}")
        if self.sample_rate < 1 and self.sampling != "poisson":
            raise ValueError("a sample_rate below 1 needs 'sampling: poisson': fixed batches amplify no privacy")
        local = self.batch_size / self.sample_rate
        if local > MOST_LOCAL_IMAGES:
            raise ValueError(f"a client holds batch_size / sample_rate images: at most {MOST_LOCAL_IMAGES}, not {local:g}")
        if abs(local - round(local)) > 1e-9 * local:
            raise ValueError(f"batch_size / sample_rate is the number of the client's images and must be whole, not {local:g}")
        if self.sampling == "poisson":
            self._check_poisson()
        if self.order == "unknown" and self.batches == 1:
            raise ValueError("'order: unknown' needs local_steps or clients above 1: a single batch has no order to hide")
        if isinstance(self.timesteps, tuple) and len(self.timesteps) != self.images:
            raise ValueError(
                f"timesteps must be one, or one for each of an update's {self.images} images, not {len(self.timesteps)}"
            )

    def _check_poisson(self) -> None:
        if self.batches > 1:
            raise ValueError("local_steps or clients above 1 need 'sampling: fixed', since Poisson batches vary in size")
        if isinstance(self.timesteps, tuple):
            raise ValueError("timesteps per image need 'sampling: fixed', since Poisson batches vary in size")

    @property
    def batches(self) -> int:
        """The batches behind an update, K E."""
        return self.clients * self.local_steps

    @property
    def images(self) -> int:
        """The private images behind an update, N = K E B (under Poisson sampling: in expectation)."""
        return self.batches * self.batch_size

    def of_one_client(self) -> Scenario:
        """Return the practice of one client alone."""
        if self.clients == 1:
            return self
        order = self.order if self.local_steps > 1 else "known"
        # The timesteps have been drawn by then; all that is left to know of them is whether they were fixed.
        timesteps = self.timesteps[0] if isinstance(self.timesteps, tuple) else self.timesteps
        return dataclasses.replace(self, clients=1, order=order, timesteps=timesteps)

    @property
    def drawn(self) -> dict[str, object]:
        """What decides which timesteps and noise the clients draw: a curve over `local_lr` shows one draw of them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("local_lr", "order")}

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

    @property
    def record(self) -> dict[str, object]:
        """The fields as a cell's record keeps them."""
        return {**dataclasses.asdict(self), "timesteps": self.timestep_label}


def label(record: Mapping[str, Any]) -> str:
    """A scenario as tables show its `record`: image size, timesteps and batch, and whatever else is not the plain case."""
    size, steps, clients = record["image_size"], record["local_steps"], record["clients"]
    parts = [f"{size}x{size} t={record['timesteps']} B={record['batch_size']}"]
    parts += [f"E={steps} lr={record['local_lr']:g}"] if steps > 1 else []
    parts += [f"K={clients}"] if clients > 1 else []
    parts += ["order unknown"] if record.get("order") == "unknown" else []
    parts += [f"poisson q={record['sample_rate']:g}"] if record["sampling"] == "poisson" else []
    return " ".join(parts)
