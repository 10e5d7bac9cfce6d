"""Layers whose weights V victims share, with a weight gradient for each victim that can be differentiated again.

V victims with B images each run as one batch of N = V B images, victim by victim. The forward pass and the input gradients use
the shared weights on the whole batch. Only the weight gradients are kept apart per victim, as grouped convolutions and batched
products. One evaluation then costs seven passes: forward, input gradient and weight gradient, and four passes for their
derivatives.

Weight gradients are computed only while autograd builds a graph. The second derivative builds no graph and does not need them
again, but a `Function` cannot find out which of its gradients are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

Leaf = Tensor | None
"""A placeholder (V, *shape) without storage that receives a parameter's gradients; None if no gradients are needed."""

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Stride, padding and dilation of a convolution."""


def per_victim(network: nn.Module, names: Collection[str], victims: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of the network that shares its weights, and the leaf (V, *shape) of each parameter in `names`.

    The leaves receive the parameters' gradients. The copy takes V B images, batch first. It is a function of its input alone,
    so threads may share it. Examples must not depend on each other, and no layer may use another layer's weights;
    `problem.choose_backend` tests both.

    Raises:
        LookupError: some layer has no rule.
    """
    shared = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    parameters = dict(shared.named_parameters())
    leaves = {name: _leaf(parameters[name], victims) for name in names}
    ruled = set()
    for path, module in shared.named_modules():
        rule = RULES.get(type(module))
        if rule is None:
            continue
        own = {name: f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)}
        forward = rule(module, victims, leaves.get(own.get("weight", "")), leaves.get(own.get("bias", "")))
        if forward is None:
            continue
        module.forward = forward
        ruled |= set(own.values())
    if missing := set(leaves) - ruled:
        raise LookupError(f"no rule for the layers of {', '.join(sorted(missing))}")
    return shared, leaves


def _leaf(parameter: Tensor, victims: int) -> Tensor:
    return parameter.new_zeros(1).expand(victims, *parameter.shape).requires_grad_()


def _split_by_victim(x: Tensor, victims: int) -> Tensor:
    return x.reshape(victims, -1, *x.shape[1:])


def _is_needed(ctx: Any, index: int) -> bool:
    """Return whether the gradient of that input, a leaf, is needed: see the module's docstring."""
    return ctx.needs_input_grad[index] and torch.is_grad_enabled()


class _Convolution(Function):
    """w * x + b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Leaf, w_leaf: Leaf, b_leaf: Leaf, victims: int, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.victims, ctx.geometry = victims, geometry
        return F.conv2d(x, w, b, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Leaf, ...]:
        x, w = ctx.saved_tensors
        dx = _InputGradient.apply(dy, w, x.shape, ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(x, dy, w.shape, ctx.victims, ctx.geometry) if _is_needed(ctx, 3) else None
        db = _split_by_victim(dy, ctx.victims).sum((1, 3, 4)) if _is_needed(ctx, 4) else None
        return dx, None, None, dw, db, None, None


class _InputGradient(Function):
    """dx of a convolution, linear in dy. The shared weight gets no derivative, which torch's own rule would compute."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, w: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(w)
        ctx.geometry = geometry
        return _input_gradient(shape, w, dy, *geometry)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Leaf, ...]:
        (w,) = ctx.saved_tensors
        return F.conv2d(c, w, None, *ctx.geometry), None, None, None


def _input_gradient(shape: torch.Size, w: Tensor, dy: Tensor, *geometry: Any) -> Tensor:
    dx: Tensor = conv2d_input(shape, w, dy, *geometry)  # type: ignore[no-untyped-call]
    return dx


class _WeightGradient(Function):
    """dw of a convolution for each victim, (V, *w.shape), bilinear in x and dy: one grouped convolution with V groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, shape: torch.Size, victims: int, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.victims, ctx.geometry = victims, geometry
        grouped = (victims * shape[0], *shape[1:])
        x, dy = _as_groups(x, victims), _as_groups(dy, victims)
        dw: Tensor = conv2d_weight(x, grouped, dy, *geometry, victims)  # type: ignore[no-untyped-call]
        return dw.view(victims, *shape)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Leaf, ...]:
        x, dy = (_as_groups(value, ctx.victims) for value in ctx.saved_tensors)
        w = c.flatten(0, 1)
        gx = _input_gradient(x.shape, w, dy, *ctx.geometry, ctx.victims) if ctx.needs_input_grad[0] else None
        gdy = F.conv2d(x, w, None, *ctx.geometry, ctx.victims)  # type: ignore[call-overload]
        return None if gx is None else _from_groups(gx, ctx.victims), _from_groups(gdy, ctx.victims), None, None, None


def _as_groups(x: Tensor, victims: int) -> Tensor:
    """Return (V B, C, H, W) as (B, V C, H, W)."""
    return _split_by_victim(x, victims).transpose(0, 1).flatten(1, 2)


def _from_groups(x: Tensor, victims: int) -> Tensor:
    return x.reshape(len(x), victims, -1, *x.shape[2:]).transpose(0, 1).flatten(0, 1)


class _Linear(Function):
    """x w^T + b. torch differentiates its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Leaf, w_leaf: Leaf, b_leaf: Leaf, victims: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.victims = victims
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Leaf, ...]:
        x, w = ctx.saved_tensors
        dx = dy @ w if ctx.needs_input_grad[0] else None
        x, dy = (value.reshape(ctx.victims, -1, value.shape[-1]) for value in (x, dy))
        dw = torch.bmm(dy.transpose(1, 2), x) if _is_needed(ctx, 3) else None
        db = dy.sum(1) if _is_needed(ctx, 4) else None
        return dx, None, None, dw, db, None


class _Affine(Function):
    """n w + b, channel by channel: the learned part of a group normalisation."""

    @staticmethod
    def forward(ctx: Any, n: Tensor, w: Tensor, b: Tensor, w_leaf: Leaf, b_leaf: Leaf, victims: int) -> Tensor:
        ctx.save_for_backward(n, w)
        ctx.victims = victims
        shape = (1, -1, *[1] * (n.dim() - 2))
        return torch.addcmul(b.view(shape), n, w.view(shape))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Leaf, ...]:
        n, w = ctx.saved_tensors
        dn = dy * w.view(1, -1, *[1] * (n.dim() - 2))
        n, dy = (_split_by_victim(value, ctx.victims).flatten(3) for value in (n, dy))
        dw = (n * dy).sum((1, 3)) if _is_needed(ctx, 3) else None
        db = dy.sum((1, 3)) if _is_needed(ctx, 4) else None
        return dn, None, None, dw, db, None


class _Normalisation(Function):
    """n = (x - mean) / sqrt(var + eps) over each group of channels of contiguous images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, eps: float) -> Tensor:
        n, mean, r = torch.native_group_norm(x, None, None, *_sizes(x), groups, eps)
        ctx.save_for_backward(x, mean, r)
        ctx.groups = groups
        return n

    @staticmethod
    def backward(ctx: Any, dn: Tensor) -> tuple[Leaf, ...]:
        return _NormalisationGradient.apply(*ctx.saved_tensors, dn.contiguous(), ctx.groups), None, None


class _NormalisationGradient(Function):
    """dx = r (d - mean(d) - n mean(d n)), with r = 1 / sqrt(var + eps). It is linear in d and symmetric.

    Its derivative in x against c, per group, is -r^2 (s n + u - mean(u) - n mean(u n)). Here u = mean(d n) c + mean(c n) d and
    s = mean(c d) - mean(c) mean(d) - mean(c n) mean(d n). torch's own rule uses many more passes for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, r: Tensor, d: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, mean, r, d)
        ctx.groups = groups
        return _normalisation_gradient(d, x, mean, r, groups)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Leaf, ...]:
        x, mean, r, d = ctx.saved_tensors
        c = c.contiguous()
        gd = _normalisation_gradient(c, x, mean, r, ctx.groups)
        rows = (x.shape[0] * ctx.groups, -1)
        x_, c_, d_, mean, r = x.view(rows), c.view(rows), d.view(rows), mean.view(-1, 1), r.view(-1, 1)
        m_c, m_d = c_.mean(1, keepdim=True), d_.mean(1, keepdim=True)
        m_cn = r * ((c_ * x_).mean(1, keepdim=True) - m_c * mean)
        m_dn = r * ((d_ * x_).mean(1, keepdim=True) - m_d * mean)
        s = (c_ * d_).mean(1, keepdim=True) - m_c * m_d - m_cn * m_dn
        in_x = -(r**3) * (s - 2 * m_cn * m_dn)
        constant = r**2 * (m_c * m_dn + m_d * m_cn) - in_x * mean
        gx = torch.addcmul(constant, c_, -(r**2) * m_dn).addcmul_(d_, -(r**2) * m_cn).addcmul_(x_, in_x)
        return gx.view_as(x), None, None, gd, None


def _normalisation_gradient(d: Tensor, x: Tensor, mean: Tensor, r: Tensor, groups: int) -> Tensor:
    sizes, only_x = _sizes(x), [True, False, False]
    found: Tensor = torch.ops.aten.native_group_norm_backward(d, x, mean, r, None, *sizes, groups, only_x)[0]
    return found


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x[0, 0].numel()


class _SiLU(Function):
    """y = x sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        found: Tensor = _SiLUGradient.apply(*ctx.saved_tensors, dy)
        return found


class _SiLUGradient(Function):
    """dx = dy y'; its derivative in x against c is c dy y'', with y'' = s (1 - s) (2 + x - 2 y), s = sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor) -> Tensor:
        ctx.save_for_backward(x, dy)
        found: Tensor = torch.ops.aten.silu_backward(dy, x)
        return found

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, Tensor]:
        x, dy = ctx.saved_tensors
        gdy = torch.ops.aten.silu_backward(c, x)
        s = torch.sigmoid(x)
        bend = torch.ops.aten.sigmoid_backward(c * dy, s)
        return bend.mul_(torch.addcmul(x, x, s, value=-2).add_(2)), gdy


Forward = Callable[[Tensor], Tensor]


def _convolution(module: Any, victims: int, w_leaf: Leaf, b_leaf: Leaf) -> Forward | None:
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    w, b = module.weight.detach(), None if module.bias is None else module.bias.detach()
    geometry = (module.stride, module.padding, module.dilation)
    return lambda x: _Convolution.apply(x, w, b, w_leaf, b_leaf, victims, geometry)


def _linear(module: Any, victims: int, w_leaf: Leaf, b_leaf: Leaf) -> Forward:
    w, b = module.weight.detach(), None if module.bias is None else module.bias.detach()
    return lambda x: _Linear.apply(x, w, b, w_leaf, b_leaf, victims)


def _group_norm(module: Any, victims: int, w_leaf: Leaf, b_leaf: Leaf) -> Forward:
    groups, eps = module.num_groups, module.eps
    if not module.affine:
        return lambda x: _Normalisation.apply(x.contiguous(), groups, eps)
    w, b = module.weight.detach(), module.bias.detach()

    def forward(x: Tensor) -> Tensor:
        n = _Normalisation.apply(x.contiguous(), groups, eps)
        y: Tensor = _Affine.apply(n, w, b, w_leaf, b_leaf, victims)
        return y

    return forward


def _silu(module: Any, victims: int, w_leaf: Leaf, b_leaf: Leaf) -> Forward:
    return lambda x: _SiLU.apply(x)


RULES: dict[type[nn.Module], Callable[[Any, int, Leaf, Leaf], Forward | None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.SiLU: _silu,
}
"""For each kind of layer, a function that returns its forward pass, given the module, V and the leaves of weight and bias."""
