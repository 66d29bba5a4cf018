"""The steps of a context-vector model through a text, with a backward pass of their own.

A step is a chain of small operations, each of which waits for the one before. So whatever can be done for all tokens at
once is: the embeddings' share of the first layer and the derivatives of the gates before the steps, the gradients of
the weights after them. What is left of a step writes into tensors that hold all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal["gated", "additive", "overwrite"]

LARGEST = 10.0  # absolute value of a number in the context
EPSILON = 1e-5  # of the norms, as torch has it

native = torch.ops.aten


class Weights(NamedTuple):
    """The weights of the steps; a linear layer is (outputs, inputs) with its bias, a norm its scale and shift.

    Attributes:
        read: (hidden, context width) of the first layer, whose share of the embeddings is computed before.
        change: of what the context is updated by.
        norm: of the context.
        layers: of the stack but the first.
        norms: before each of these and after the last; empty without norms.
    """

    read: Tensor
    change: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]
    layers: Sequence[tuple[Tensor, Tensor]]
    norms: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, flat: Sequence[Tensor], layers: int) -> Weights:
        """From one after the other, in this order."""
        pairs = list(zip(flat[1::2], flat[2::2], strict=True))
        return cls(flat[0], pairs[0], pairs[1], pairs[2 : 2 + layers], pairs[2 + layers :])


class Tape:
    """What the steps of a forward pass leave for the backward pass, (length, batch, width) each.

    Attributes:
        before, after: contexts as a token finds and leaves them.
        active: of each layer, its outputs after ReLU and dropout.
        states: of each layer, its outputs with what it adds to.
        normed: what comes out of the norms of the stack.
        changes: what the context is updated by, after its nonlinearity.
        sums: what the context's norm reads.
        statistics: of each step, mean and inverse deviation of the norms of the stack and of the context.
    """

    def __init__(self, read: Tensor, width: int, changes: int, layers: int, norms: int, residual: bool, cut: bool):
        length, batch, hidden = read.shape

        def room(width: int, more: int = 0) -> Tensor:
            return read.new_empty(length + more, batch, width)

        contexts = room(width, 1)
        self.before, self.after = (room(width) if cut else contexts[:-1]), contexts[1:]
        self.active = [room(hidden) for _ in range(1 + layers)]
        self.states = [self.active[0], *(room(hidden) if residual else active for active in self.active[1:])]
        self.normed = [room(hidden) for _ in range(norms)]
        self.changes, self.sums = room(changes), room(width)
        self.statistics: list[list[tuple[Tensor, Tensor]]] = []

    @property
    def hidden(self) -> Tensor:
        """The hidden states of the stack."""
        return self.normed[-1] if self.normed else self.states[-1]


class Steps(torch.autograd.Function):
    """All steps of a batch."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        rule: Rule,
        residual: bool,
        layers: int,
        scale: float,
        masks: Tensor | None,
        kept: Tensor | None,
        read: Tensor,
        context: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Read a text.

        Args:
            layers: of the stack but the first.
            scale: what dropout multiplies by where it does not drop.
            masks: (1 + layers, length, batch, hidden), 0 where dropout drops, else `scale`; None: it drops nothing.
            kept: (length, batch, 1), 0 where a text begins and 1 elsewhere; None: it begins nowhere.
            read: (length, batch, hidden), the embeddings' share of the first layer, with its bias.
            context: (batch, context width), before the first token.
            flat: the weights, see `Weights.of`.

        Returns:
            Hidden states (length, batch, hidden), and contexts after the tokens (length, batch, context width).
        """
        weights, width = Weights.of(flat, layers), context.shape[1]
        changes, norms = len(weights.change[1]), len(weights.norms)
        tape = Tape(read, width, changes, layers, norms, residual, cut=kept is not None)
        linears = [(weight.t(), bias) for weight, bias in weights.layers]
        to_read, to_change = weights.read.t(), weights.change[0].t()
        for step in range(len(read)):
            before, statistics = tape.before[step], []
            if kept is not None:
                torch.mul(context, kept[step], out=before)
            elif step == 0:
                before.copy_(context)
            active = tape.active[0][step]
            state = torch.addmm(read[step], before, to_read, out=active).relu_()
            if masks is not None:
                active.mul_(masks[0, step])
            for index, (weight, bias) in enumerate(linears):
                if weights.norms:
                    state = _normalised(state, weights.norms[index], statistics, tape.normed[index][step])
                active, state_before = tape.active[index + 1][step], tape.states[index][step]
                torch.addmm(bias, state, weight, out=active).relu_()
                if masks is not None:
                    active.mul_(masks[index + 1, step])
                state = active
                if residual:
                    state = torch.add(state_before, active, out=tape.states[index + 1][step])
            if weights.norms:
                state = _normalised(state, weights.norms[-1], statistics, tape.normed[-1][step])
            change, total = tape.changes[step], tape.sums[step]
            torch.addmm(weights.change[1], state, to_change, out=change)
            if rule == "gated":
                change[:, width:].sigmoid_()
                torch.mul(change[:, width : 2 * width], before, out=total)
                total.addcmul_(change[:, 2 * width :], change[:, :width])
            elif rule == "additive":
                torch.add(before, change, out=total)
            else:
                torch.tanh(change, out=total)
            normal = _normalised(total, weights.norm, statistics)
            context = torch.clamp(normal, -LARGEST, LARGEST, out=tape.after[step])
            tape.statistics.append(statistics)
        ctx.save_for_backward(*flat)
        ctx.tape, ctx.rule, ctx.residual, ctx.layers, ctx.scale, ctx.kept = tape, rule, residual, layers, scale, kept
        return tape.hidden.clone(), tape.after.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, hidden: Tensor, after: Tensor) -> tuple:
        """Gradients, from those of the hidden states and of the contexts after the tokens."""
        tape, flat = ctx.tape, ctx.saved_tensors
        weights = Weights.of(flat, ctx.layers)
        active, normed = ([torch.empty_like(part) for part in parts] for parts in (tape.active, tape.normed))
        changes, sums = torch.empty_like(tape.changes), torch.empty_like(tape.sums)
        inside = tape.after.abs() < LARGEST
        inside = None if bool(inside.all()) else inside
        slopes, forget = _slopes(ctx.rule, tape)
        # Gradients of active outputs lack the scale of dropout: it is multiplied into what reads them.
        linears = [weight * ctx.scale for weight, _ in weights.layers]
        to_read, context = weights.read * ctx.scale, None
        for step in reversed(range(len(hidden))):
            statistics = tape.statistics[step]
            context = (
                torch.add(after[step], context, out=sums[step])
                if context is not None
                else sums[step].copy_(after[step])
            )
            if inside is not None:
                context.mul_(inside[step])
            context = _norm_backward(context, tape.sums[step], weights.norm, statistics[-1])
            change = changes[step]
            torch.mul(context[:, None], slopes[step], out=change.unflatten(1, slopes.shape[2:]))
            state = torch.addmm(hidden[step], change, weights.change[0])
            if weights.norms:
                normed[-1][step] = state
                state = _norm_backward(state, tape.states[-1][step], weights.norms[-1], statistics[-2])
            for index in reversed(range(ctx.layers)):
                own = active[index + 1][step]
                native.threshold_backward.grad_input(state, tape.active[index + 1][step], 0, grad_input=own)
                inputs = own @ linears[index]
                if weights.norms:
                    normed[index][step] = inputs
                    inputs = _norm_backward(inputs, tape.states[index][step], weights.norms[index], statistics[index])
                state = state + inputs if ctx.residual else inputs
            own = active[0][step]
            native.threshold_backward.grad_input(state, tape.active[0][step], 0, grad_input=own)
            if ctx.rule == "gated":
                context = torch.addmm(context * forget[step], own, to_read)
            else:
                context = torch.addmm(context, own, to_read) if ctx.rule == "additive" else own @ to_read
            if ctx.kept is not None:
                context = context * ctx.kept[step]
        for part in active:
            part.mul_(ctx.scale)
        gradients = _weight_gradients(weights, tape, active, changes, sums, normed)
        return None, None, None, None, None, None, active[0], context, *gradients


def _slopes(rule: Rule, tape: Tape) -> tuple[Tensor, Tensor | None]:
    """Derivatives of the sums by what the context is updated by, (length, batch, parts, width), and by the context."""
    if rule == "gated":
        new, forget, write = tape.changes.chunk(3, -1)
        slopes = [write, tape.before * forget * (1 - forget), new * write * (1 - write)]
        return torch.stack(slopes, 2), forget
    if rule == "additive":
        return torch.ones_like(tape.changes)[:, :, None], None
    return (1 - tape.sums.square())[:, :, None], None


def _weight_gradients(
    weights: Weights, tape: Tape, active: list[Tensor], changes: Tensor, sums: Tensor, normed: list[Tensor]
) -> list[Tensor]:
    """Each in one product over all tokens, from the gradients of what the weights give; in the order of `Weights`."""
    statistics = [tuple(map(torch.stack, zip(*norm, strict=True))) for norm in zip(*tape.statistics, strict=True)]
    gradients = [_product(active[0], tape.before), *_linear_gradients(changes, tape.hidden)]
    gradients += _norm_gradients(sums, tape.sums, weights.norm, statistics[-1])
    inputs = tape.normed or tape.states
    for gradient, into in zip(active[1:], inputs, strict=False):  # the last is what the stack gives
        gradients += _linear_gradients(gradient, into)
    for index, norm in enumerate(weights.norms):
        gradients += _norm_gradients(normed[index], tape.states[index], norm, statistics[index])
    return gradients


def _product(gradient: Tensor, inputs: Tensor) -> Tensor:
    return gradient.flatten(0, 1).t() @ inputs.flatten(0, 1)


def _linear_gradients(gradient: Tensor, inputs: Tensor) -> list[Tensor]:
    """Of weight and bias."""
    return [_product(gradient, inputs), gradient.sum((0, 1))]


def _normalised(
    state: Tensor, norm: tuple[Tensor, Tensor], statistics: list[tuple[Tensor, Tensor]], out: Tensor | None = None
) -> Tensor:
    output, *of_rows = native.native_layer_norm(state, state.shape[1:], *norm, EPSILON)
    statistics.append(tuple(of_rows))
    return output if out is None else out.copy_(output)


def _norm_backward(
    gradient: Tensor, inputs: Tensor, norm: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor]
) -> Tensor:
    """Of the inputs."""
    wanted = [True, False, False]
    return native.native_layer_norm_backward(gradient, inputs, inputs.shape[-1:], *statistics, *norm, wanted)[0]


def _norm_gradients(
    gradient: Tensor, inputs: Tensor, norm: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Of scale and shift."""
    wanted = [False, True, True]
    return list(native.native_layer_norm_backward(gradient, inputs, inputs.shape[-1:], *statistics, *norm, wanted)[1:])
