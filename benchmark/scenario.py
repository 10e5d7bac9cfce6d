"""The scenario axis of a grid: the practice of the clients, i.e. how they train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from benchmark.base.practice import Augmentation, Message, MessageKind, Optimiser, OptimiserName, Precision, State
from benchmark.base.ranges import MAX_NUMBER, Count, Natural, NonNegative, Positive, Range, Share, check_fields

MAX_IMAGES = 100_000
"""Maximum number of private images behind one update. More are probably a mistake, and would not fit into memory."""

MIN_LR = 1e-20
"""Minimum of a step size. Limits of weights are divided by it, and must stay finite in float32."""

MAX_LOCAL_IMAGES = 10_000_000
"""Maximum number of images of one client from which a Poisson batch is drawn."""


TRAINING_FIELDS = frozenset(
    (
        *("local_lr", "optimiser", "beta1", "beta2", "eps", "weight_decay", "max_norm", "state", "round", "accumulation"),
        *("augment", "dropout", "min_snr", "ema", "sent_parameters", "message", "precision", "order"),
    )
)
"""The fields of a scenario that do not change which timesteps and noise the clients draw."""

WALK_FIELDS = frozenset(("epochs", "client_images"))
"""The fields that change these draws only if a client walks through its images more than once."""

Decay = Annotated[float, Range(0, 1, below=True)]
"""A number in [0, 1)."""


@dataclass(frozen=True)
class Scenario:
    """How clients train in one round, and in which order the server sees granted values.

    Every client starts from the same global weights. It takes `local_steps` steps, each on a new batch.

    Attributes:
        image_size: side of the square images in pixels; None uses the image size of the model.
        batch_size: number of private images B in a batch (under Poisson sampling: the expected number).
        local_steps: number of steps E that a client takes before it sends its update. With `client_images`, E is the number of
            batches in all epochs, and 1 stands for it.
        local_lr: step size of a client's optimiser, at least `MIN_LR`. It has no effect if a client takes one step of plain
            SGD and sends its update, unless a defense acts on the change of the weights.
        optimiser: `sgd` without momentum, `adam`, `adamw` or `amsgrad` (Adam with amsgrad), each as in torch.
        beta1: first decay rate of Adam; without effect for `sgd`, as `beta2` and `eps`.
        beta2: second decay rate of Adam.
        eps: the number in Adam's denominator.
        weight_decay: weight decay of the optimiser.
        max_norm: l2 norm to which the gradient of each local step is clipped; None for no clipping.
        state: state of the optimiser at the start of the round: `fresh`, or `kept` from the rounds before. The earlier steps
            used public images, drawn with replacement, at the same global weights.
        round: number of the round, from 1; without effect for a fresh state, and for `sgd`, which has no state.
        accumulation: number of equal parts of each batch whose gradients are averaged before a step. Only rounding depends on
            it.
        client_images: number of private images of a client, which it walks through in shuffled batches; None for new images
            in each of the `local_steps`.
        epochs: number of walks. Each one has another order, timesteps and noise. Each use of an image is judged on its own.
        augment: changes of each image at each use: `none`, `flip` (left and right, with probability 1/2), or `flip_crop` (a
            crop of the image in a black border of an eighth of its side, then a flip). The image is judged as it was used. The
            images behind a kept state are not changed.
        dropout: probability of the network's dropout layers while a client trains. The attack's network drops nothing.
        min_snr: gamma of the loss weights by the signal-to-noise ratio (`Process.min_snr`); None for equal weights.
        ema: decay of the averaged weights that a client sends (`Message.ema`); None if it sends the last weights.
        sent_parameters: part of the names of the parameters that a client sends; None if it sends all that it trains. The other
            parameters are trained and stay with the client.
        message: what a client sends: its `update`, i.e. the change of its weights, or its `weights`.
        precision: type of the numbers that a client sends. `secaggplus` is the rounding of weights before Flower's secure
            aggregation (`benchmark.diffusion.secaggplus`).
        clients: number of clients K that take part. The server sees the update of each client. Under a defense that
            aggregates, it sees only their mean.
        order: order of the granted timesteps and noise. `known`: the order of clients, steps and batch. `unknown`: a random
            order.
        timesteps: `uniform`, or fixed for a study: one value for all images, or one value per image, ordered by client and
            step.
        sampling: `fixed` batches, or `poisson`: each of the client's batch_size / sample_rate images joins the batch
            independently. An empty batch is drawn again, because there is nothing to rebuild. The attack is granted the
            resulting size.
        sample_rate: probability that a local image is in the batch; below 1 only with Poisson sampling.
    """

    image_size: Annotated[int, Range(8, 1024)] | None = None
    batch_size: Count = 1
    local_steps: Count = 1
    local_lr: Annotated[float, Range(MIN_LR, MAX_NUMBER)] = 0.01
    optimiser: OptimiserName = "sgd"
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_norm: Positive | None = None
    state: State = "fresh"
    round: Count = 1
    accumulation: Count = 1
    client_images: Count | None = None
    epochs: Count = 1
    augment: Augmentation = "none"
    dropout: Decay = 0.0
    min_snr: Positive | None = None
    ema: Decay | None = None
    sent_parameters: str | None = None
    message: MessageKind = "update"
    precision: Precision = "float32"
    clients: Count = 1
    order: Literal["known", "unknown"] = "known"
    timesteps: Literal["uniform"] | Natural | tuple[Natural, ...] = "uniform"
    sampling: Literal["fixed", "poisson"] = "fixed"
    sample_rate: Share = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_walk()
        if self.images > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images may lie behind an update, not {self.images}")
        if self.sample_rate < 1 and self.sampling != "poisson":
            raise ValueError("a sample_rate below 1 needs 'sampling: poisson': fixed batches amplify no privacy")
        local_images = self.batch_size / self.sample_rate
        if local_images > MAX_LOCAL_IMAGES:
            raise ValueError(
                f"a client holds batch_size / sample_rate images: at most {MAX_LOCAL_IMAGES}, not {local_images:g}"
            )
        if abs(local_images - round(local_images)) > 1e-9 * local_images:
            raise ValueError(
                f"batch_size / sample_rate is the number of the client's images and must be whole, not {local_images:g}"
            )
        if self.precision == "secaggplus" and self.message != "weights":
            raise ValueError("'precision: secaggplus' rounds weights, so it needs 'message: weights'")
        if self.sampling == "poisson":
            self._check_poisson()
        self._check_steps()
        if self.order == "unknown" and self.batches == 1:
            raise ValueError("'order: unknown' needs local_steps or clients above 1: a single batch has no order to hide")
        if isinstance(self.timesteps, tuple) and len(self.timesteps) != self.images:
            raise ValueError(
                f"timesteps must be one, or one for each of an update's {self.images} images, not {len(self.timesteps)}"
            )

    def _check_walk(self) -> None:
        """Check the client's images and set the number of local steps that they imply."""
        if self.client_images is None:
            if self.epochs > 1:
                raise ValueError("epochs need 'client_images', the number of images of a client")
            return
        if self.client_images % self.batch_size:
            raise ValueError(f"client_images must be a multiple of the batch size {self.batch_size}, not {self.client_images}")
        steps = self.epochs * self.client_images // self.batch_size
        if self.local_steps not in (1, steps):
            raise ValueError(
                f"the walk through client_images has {steps} local steps, so local_steps cannot be {self.local_steps}"
            )
        object.__setattr__(self, "local_steps", steps)

    def _check_steps(self) -> None:
        if self.sent_parameters == "":
            raise ValueError("sent_parameters must be a part of the names of the parameters that are sent, e.g. attentions")
        if self.state == "kept" and self.round == 1:
            raise ValueError("'state: kept' needs a round above 1: before the first round there is no state to keep")
        earlier = self.clients * self.earlier_steps * self.batch_size
        if earlier > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images may lie behind kept states, not {earlier}")
        if self.accumulation > 1 and self.sampling == "poisson":
            raise ValueError("accumulation needs 'sampling: fixed', since Poisson batches vary in size")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation must divide the batch size {self.batch_size}, and {self.accumulation} does not")

    def _check_poisson(self) -> None:
        if self.client_images is not None:
            raise ValueError("client_images need 'sampling: fixed', since sample_rate already states the client's images")
        if self.batches > 1:
            raise ValueError("local_steps or clients above 1 need 'sampling: fixed', since Poisson batches vary in size")
        if isinstance(self.timesteps, tuple):
            raise ValueError("timesteps per image need 'sampling: fixed', since Poisson batches vary in size")

    @property
    def batches(self) -> int:
        """Return the number of batches behind an update, K E."""
        return self.clients * self.local_steps

    @property
    def images(self) -> int:
        """Return the number of private images behind an update, N = K E B (under Poisson sampling: the expected number)."""
        return self.batches * self.batch_size

    @property
    def examples(self) -> int:
        """Return the number of a client's images, which it reports to the server."""
        return self.client_images or round(self.local_steps * self.batch_size / self.sample_rate)

    @property
    def scale(self) -> float:
        """Return s, where theta_0 minus the sent weights is s times the update.

        It is lr E, or lr times `Message.gain` if averaged weights are sent.
        """
        return self.local_lr * self.sent.gain(self.local_steps)

    @property
    def step_scale(self) -> float:
        """Return s / E: minus the change of the sent weights for each step, over the update. It is lr for the last weights."""
        return self.scale / self.local_steps

    @property
    def earlier_steps(self) -> int:
        """Return the number of steps of earlier rounds that the kept state of the optimiser remembers."""
        return (self.round - 1) * self.local_steps if self.state == "kept" and self.optimiser != "sgd" else 0

    @property
    def local_optimiser(self) -> Optimiser:
        """Return the optimiser of a client."""
        betas = (self.beta1, self.beta2)
        return Optimiser(self.optimiser, self.local_lr, *betas, self.eps, self.weight_decay, self.max_norm, self.earlier_steps)

    @property
    def sent(self) -> Message:
        """Return what a client sends."""
        return Message(self.message, self.precision, self.examples, self.ema)

    @property
    def lr_matters(self) -> bool:
        """Return whether the step size changes what the server receives if no defense uses it."""
        several = self.local_steps > 1 or self.ema is not None
        return several or not self.local_optimiser.is_plain or self.message == "weights"

    def effective(self, uses_lr: bool) -> Scenario:
        """Return the scenario with the usual value of every setting that has no effect.

        Args:
            uses_lr: whether the defense uses the step size (`Defense.uses_lr`).
        """
        scenario = self
        if self.optimiser == "sgd":
            usual = {name: getattr(Scenario, name) for name in ("beta1", "beta2", "eps")}
            scenario = dataclasses.replace(scenario, **usual)
        if not self.earlier_steps:
            scenario = dataclasses.replace(scenario, state="fresh", round=1)
        if self.epochs == 1:  # the walk is that of `local_steps`
            scenario = dataclasses.replace(scenario, client_images=None)
        return scenario if self.lr_matters or uses_lr else dataclasses.replace(scenario, local_lr=Scenario.local_lr)

    def of_one_client(self) -> Scenario:
        """Return the scenario of a single client."""
        if self.clients == 1:
            return self
        order = self.order if self.local_steps > 1 else "known"
        # The timesteps have already been drawn. Later code only asks whether they were fixed.
        timesteps = self.timesteps[0] if isinstance(self.timesteps, tuple) else self.timesteps
        return dataclasses.replace(self, clients=1, order=order, timesteps=timesteps)

    @property
    def draw_fields(self) -> dict[str, object]:
        """Return the fields that decide which timesteps and noise the clients draw.

        The others are left out, so that scenarios that differ only in them share one draw.
        """
        left_out = TRAINING_FIELDS if self.epochs > 1 else TRAINING_FIELDS | WALK_FIELDS
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}

    @property
    def fixed_timesteps(self) -> tuple[int, ...]:
        """Return the fixed timesteps, or an empty tuple if timesteps are drawn uniformly."""
        if self.timesteps == "uniform":
            return ()
        return (self.timesteps,) if isinstance(self.timesteps, int) else tuple(self.timesteps)

    @property
    def timestep_label(self) -> str:
        """Return the timesteps as a table shows them: `uniform`, `200` or `100 200`."""
        return " ".join(map(str, self.fixed_timesteps)) or "uniform"

    @property
    def record(self) -> dict[str, object]:
        """Return the fields as a cell's record stores them."""
        return {**dataclasses.asdict(self), "timesteps": self.timestep_label}


USUAL: Mapping[str, float | None] = {
    name: getattr(Scenario, name)
    for name in (
        *("beta1", "beta2", "eps", "weight_decay", "max_norm", "round", "accumulation", "epochs", "client_images"),
        *("dropout", "min_snr", "ema"),
    )
}
"""Numbers that a label shows only if they are others than these."""


def label(record: Mapping[str, Any]) -> str:
    """Return the label of a scenario for tables, from its `record`.

    It shows image size, timesteps and batch size. The others appear only if they are not the default. Records of 0.2.0 and
    before lack many of them.
    """
    size, steps, clients = record["image_size"], record["local_steps"], record["clients"]
    parts = [f"{size}x{size} t={record['timesteps']} B={record['batch_size']}"]
    optimiser, message = record.get("optimiser", "sgd"), record.get("message", "update")
    parts += [optimiser] if optimiser != "sgd" else []
    parts += [f"E={steps}"] if steps > 1 else []
    lr_matters = steps > 1 or optimiser != "sgd" or message == "weights" or record.get("ema") is not None
    parts += [f"lr={record['local_lr']:g}"] if lr_matters or record["local_lr"] != Scenario.local_lr else []
    parts += ["kept state"] if record.get("state", "fresh") == "kept" else []
    parts += [f"{name}={record[name]:g}" for name, usual in USUAL.items() if record.get(name, usual) != usual]
    parts += [f"only {record['sent_parameters']}"] if record.get("sent_parameters") else []
    augment, precision = record.get("augment", "none"), record.get("precision", "float32")
    parts += [augment] if augment != "none" else []
    parts += [f"sends {precision} {message}"] if (message, precision) != ("update", "float32") else []
    parts += [f"K={clients}"] if clients > 1 else []
    parts += ["order unknown"] if record.get("order") == "unknown" else []
    parts += [f"poisson q={record['sample_rate']:g}"] if record["sampling"] == "poisson" else []
    return " ".join(parts)
