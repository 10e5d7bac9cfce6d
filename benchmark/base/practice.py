"""How a client trains and what it sends: an optimiser with its settings, and a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimiserName = Literal["sgd", "adam", "adamw", "amsgrad"]

MessageKind = Literal["update", "weights"]

State = Literal["fresh", "kept"]

Augmentation = Literal["none", "flip", "flip_crop"]

Precision = Literal["float32", "float16", "bfloat16", "secaggplus"]


@dataclass(frozen=True)
class Optimiser:
    """An optimiser of torch with its settings.

    Attributes:
        name: `sgd` without momentum, `adam` and `amsgrad` with weight decay in the gradient (L2), or `adamw`.
        lr: step size eta.
        beta1: decay of the mean of gradients; without effect for `sgd`, as `beta2` and `eps`.
        beta2: decay of the mean of squared gradients.
        eps: number that is added to the root of the mean of squared gradients.
        weight_decay: weight decay.
        max_norm: l2 norm to which the gradient of each step is clipped, over all parameters; None for no clipping.
        earlier_steps: number of steps of earlier rounds whose state the client has kept; 0 for a fresh state.
    """

    name: OptimiserName = "sgd"
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float | None = None
    earlier_steps: int = 0

    @property
    def is_plain(self) -> bool:
        """Return whether a step is plain SGD: the gradient times the step size."""
        return self.name == "sgd" and not self.weight_decay and self.max_norm is None


@dataclass(frozen=True)
class Message:
    """What a client sends.

    Attributes:
        kind: `update`: the change of the weights. `weights`: the weights themselves.
        precision: the type of the numbers sent. `secaggplus`: weights as Flower's secure aggregation rounds them.
        examples: number of images that the client reports. Secure aggregation weighs the client's message by it.
        ema: decay d of the averaged weights that are sent instead of the last ones; None if the last ones are sent. The average
            starts at theta_0 and becomes d average + (1 - d) theta after each step.
    """

    kind: MessageKind = "update"
    precision: Precision = "float32"
    examples: int = 1
    ema: float | None = None

    def gain(self, steps: int) -> float:
        """Return the change of the sent weights in units of the step size, if E steps had one gradient of size 1.

        Without an average this is E. Step i of E moves the average by 1 - d^(E - i + 1) of its size.
        """
        decay = self.ema or 0.0
        return sum(1 - decay**left for left in range(1, steps + 1))

    @property
    def is_exact(self) -> bool:
        """Return whether the server receives the update as the client computed it."""
        return (self.kind, self.precision) == (Message.kind, Message.precision)
