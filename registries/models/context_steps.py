"""The steps of a context-vector model through a text, with a backward pass of their own.

A step is a chain of small operations, each of which waits for the one before. So whatever can be done for all tokens at
once is: the embeddings' share of the first layer and the derivatives of the gates before the steps, the gradients of
the weights after them. What is left of a step writes into tensors that hold all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from registries.models.packed_linear import PackedLinear

Rule = Literal["gated", "additive", "overwrite"]

LARGEST = 10.0  # absolute value of a number in the context
EPSILON = 1e-5  # of the norms, as torch has it

native = torch.ops.aten
threshold_backward = native.threshold_backward.grad_input


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
    """What the steps write: of a forward pass, and of the backward pass after it, (length, batch, width) each.

    Memory that was just allocated is slow to write to, so the tape of the last training step serves the next one.

    Attributes:
        contexts: before the first token, and after each.
        before: contexts as tokens find them.
        active: of each layer, its outputs after ReLU and dropout.
        states: of each layer, its outputs with what it adds to.
        normed: what comes out of the norms of the stack.
        changes: what the context is updated by, after its nonlinearity.
        sums: what the context's norm reads.
        gradients: of `active` before the ReLU, of `normed`, of `changes`, and of what the norm makes of `sums`.
        statistics: of each step, mean and inverse deviation of the norms of the stack and of the context.
    """

    last: ClassVar[Tape | None] = None

    def __init__(self, form: tuple):
        self.form = form
        self.length, batch, hidden, width, changes, layers, norms, residual, cut, self.options = form

        def room(width: int, count: int = 1, length: int = self.length) -> list[Tensor]:
            return [torch.empty(length, batch, width, **dict(self.options)) for _ in range(count)]

        (self.contexts,) = room(width, length=self.length + 1)
        self.before = room(width)[0] if cut else self.contexts[:-1]
        self.active = room(hidden, 1 + layers)
        self.states = [self.active[0], *(room(hidden, layers) if residual else self.active[1:])]
        self.normed, (self.changes,), (self.sums,) = room(hidden, norms), room(changes), room(width)
        self.gradients = (room(hidden, 1 + layers), room(hidden, norms), *room(changes), *room(width))
        self.statistics: list[list[tuple[Tensor, Tensor]]] = []

    @classmethod
    def of(cls, weights: Weights, read: Tensor, width: int, residual: bool, cut: bool) -> Tape:
        """A tape with room for a text: the last one, if it is free and of this form."""
        options = (("dtype", read.dtype), ("device", read.device))
        counts = len(weights.change[1]), len(weights.layers), len(weights.norms)
        form = (*read.shape, width, *counts, residual, cut, options)
        tape, cls.last = cls.last, None
        tape = tape if tape is not None and tape.form == form else cls(form)
        tape.statistics = []
        return tape

    @property
    def hidden(self) -> Tensor:
        """The hidden states of the stack."""
        return self.normed[-1] if self.normed else self.states[-1]


class Lease:
    """Keeps a tape for one pass; when nobody holds the pass any more, the tape is left to the next one."""

    def __init__(self, tape: Tape):
        self.tape = tape

    def __del__(self) -> None:
        Tape.last = self.tape


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
            scale: what dropout multiplies by what it does not drop.
            masks: (1 + layers, length, batch, hidden), False where dropout drops; None: it drops nothing.
            kept: (length, batch, 1), 0 where a text begins and 1 elsewhere; None: it begins nowhere.
            read: (length, batch, hidden), the embeddings' share of the first layer, with its bias.
            context: (batch, context width), before the first token.
            flat: the weights, see `Weights.of`.

        Returns:
            Hidden states (length, batch, hidden), and contexts after the tokens (length, batch, context width).
        """
        weights, width = Weights.of(flat, layers), context.shape[1]
        tape = Tape.of(weights, read, width, residual, cut=kept is not None)
        # What ReLU gives grows with what it gets, so that the scale may come before it.
        batch = len(context)
        linears = [PackedLinear(weight * scale, batch, bias * scale) for weight, bias in weights.layers]
        to_read, to_change = (weights.read * scale).t(), PackedLinear(weights.change[0], batch, weights.change[1])
        masks = [[None] * len(read)] * (1 + layers) if masks is None else [part.unbind() for part in masks]
        active, states, normed = (
            [part.unbind() for part in parts] for parts in (tape.active, tape.states, tape.normed)
        )
        tape.contexts[0] = context
        rows = zip(read, tape.contexts[1:], tape.before, tape.changes, tape.sums, strict=True)
        for step, (read_step, after, before, change, total) in enumerate(rows):
            statistics: list[tuple[Tensor, Tensor]] = []
            if kept is not None:
                torch.mul(context, kept[step], out=before)
            state = torch.addmm(read_step, before, to_read, beta=scale, out=active[0][step]).relu_()
            if masks[0][step] is not None:
                state.mul_(masks[0][step])
            for index, linear in enumerate(linears):
                inputs = state
                if normed:
                    inputs = _normalised(state, weights.norms[index], statistics, normed[index][step])
                outputs, mask = linear(inputs, relu=True), masks[index + 1][step]
                kept_outputs = active[index + 1][step]
                outputs = kept_outputs.copy_(outputs) if mask is None else torch.mul(outputs, mask, out=kept_outputs)
                state = torch.add(state, outputs, out=states[index + 1][step]) if residual else outputs
            if normed:
                state = _normalised(state, weights.norms[-1], statistics, normed[-1][step])
            change.copy_(to_change(state))
            if rule == "gated":
                change[:, width:].sigmoid_()
                torch.mul(change[:, width : 2 * width], before, out=total)
                total.addcmul_(change[:, 2 * width :], change[:, :width])
            elif rule == "additive":
                torch.add(before, change, out=total)
            else:
                torch.tanh(change, out=total)
            context = _normalised(total, weights.norm, statistics)
            context = torch.clamp(context, -LARGEST, LARGEST, out=after)
            tape.statistics.append(statistics)
        ctx.save_for_backward(*flat)
        ctx.rule, ctx.residual, ctx.layers, ctx.scale, ctx.kept = rule, residual, layers, scale, kept
        ctx.lease = Lease(tape)
        return tape.hidden.clone(), tape.contexts[1:].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, hidden: Tensor, after: Tensor) -> tuple:
        """Gradients, from those of the hidden states and of the contexts after the tokens."""
        tape, layers, rule = ctx.lease.tape, ctx.layers, ctx.rule
        weights = Weights.of(ctx.saved_tensors, layers)
        inside = tape.contexts[1:].abs() < LARGEST
        inside = None if bool(inside.all()) else inside
        slopes, forget = _slopes(rule, tape)
        batch = hidden.shape[1]
        linears = [PackedLinear((weight * ctx.scale).t(), batch) for weight, _ in weights.layers]
        to_read, to_change = weights.read * ctx.scale, PackedLinear(weights.change[0].t(), batch)
        own, normed, changes, sums = tape.gradients
        own, active, states = ([part.unbind() for part in parts] for parts in (own, tape.active, tape.states))
        parts, context = changes.unflatten(2, slopes.shape[2:]).unbind(), torch.zeros_like(sums[0])
        for step in reversed(range(tape.length)):
            statistics = tape.statistics[step]
            context = torch.add(after[step], context, out=sums[step])
            if inside is not None:
                context.mul_(inside[step])
            context = _norm_backward(context, tape.sums[step], weights.norm, statistics[-1])
            torch.mul(context[:, None], slopes[step], out=parts[step])
            state = to_change.plus(changes[step], hidden[step])
            if normed:
                normed[-1][step] = state
                state = _norm_backward(state, states[-1][step], weights.norms[-1], statistics[-2])
            for index in reversed(range(layers)):
                # Without the scale of dropout, which is in the weights that read it.
                threshold_backward(state, active[index + 1][step], 0, grad_input=own[index + 1][step])
                inputs = linears[index](own[index + 1][step])
                if normed:
                    normed[index][step] = inputs
                    inputs = _norm_backward(inputs, states[index][step], weights.norms[index], statistics[index])
                state = state + inputs if ctx.residual else inputs
            threshold_backward(state, active[0][step], 0, grad_input=own[0][step])
            if rule == "overwrite":
                context = own[0][step] @ to_read
            else:
                context = torch.addmm(context * forget[step] if rule == "gated" else context, own[0][step], to_read)
            if ctx.kept is not None:
                context = context * ctx.kept[step]
        if ctx.scale != 1:
            for part in tape.gradients[0]:
                part.mul_(ctx.scale)
        gradients = _weight_gradients(weights, tape)
        return None, None, None, None, None, None, tape.gradients[0][0].clone(), context, *gradients


def _slopes(rule: Rule, tape: Tape) -> tuple[Tensor, Tensor | None]:
    """Derivatives of the sums by what the context is updated by, (length, batch, parts, width), and by the context."""
    if rule == "gated":
        new, forget, write = tape.changes.chunk(3, -1)
        slopes = [write, tape.before * forget * (1 - forget), new * write * (1 - write)]
        return torch.stack(slopes, 2), forget
    if rule == "additive":
        return torch.ones_like(tape.changes)[:, :, None], None
    return (1 - tape.sums.square())[:, :, None], None


def _weight_gradients(weights: Weights, tape: Tape) -> list[Tensor]:
    """Each in one product over all tokens, from the gradients of what the weights give; in the order of `Weights`."""
    active, normed, changes, sums = tape.gradients
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
