"""The steps of a context-vector model through a text, with a backward pass of their own.

A step is some twenty small operations that wait for each other. So whatever can be done for all tokens at once is: the
embeddings' share of the first layer before the steps, and the gradients of the weights after them. The rows of a batch
do not depend on each other: each thread takes some of them through the whole text, which needs no exchange in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal["gated", "additive", "overwrite"]

LARGEST = 10.0  # absolute value of a number in the context
EPSILON = 1e-5  # of the norms, as torch has it
LEAST_ROWS = 8  # of a thread; with fewer, products are slow

native = torch.ops.aten


class Weights(NamedTuple):
    """The weights of the steps.

    Attributes:
        read: (hidden, context width) of the first layer; its share of the embeddings is computed before.
        change: (parts * context width, hidden) and bias of what the context is updated by.
        norm: scale and shift of the context's norm.
        layers: (hidden, hidden) and bias of every other layer, one after the other.
        norms: scale and shift before every other layer and after the last, one after the other; empty without norms.
    """

    read: Tensor
    change: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]
    layers: Sequence[Tensor]
    norms: Sequence[Tensor]


class Rows:
    """Some rows of a batch on their way through a text.

    Args:
        read: (length, rows, hidden), the embeddings' share of the first layer, with its bias.
        context: (rows, context width) before the first token.
        kept: (length, rows, 1), 0 where a text begins and 1 elsewhere; None: it begins nowhere.
        masks: (layers, length, rows, hidden), False where dropout drops; None: it drops nothing.
        scale: what dropout multiplies the rest by.
    """

    def __init__(
        self,
        weights: Weights,
        rule: Rule,
        residual: bool,
        read: Tensor,
        context: Tensor,
        kept: Tensor | None,
        masks: Tensor | None,
        scale: float,
    ):
        self.weights, self.rule, self.residual, self.kept = weights, rule, residual, kept
        self.masks, self.scale = masks, scale
        self.layers = list(zip(weights.layers[::2], weights.layers[1::2], strict=True))
        self.norms = list(zip(weights.norms[::2], weights.norms[1::2], strict=True))
        (self.length, self.rows, hidden), depth, width = read.shape, len(self.layers) + 1, context.shape[1]

        def room(*shape: int) -> Tensor:
            return read.new_empty(self.length, self.rows, *shape)

        self.before = room(width)  # contexts as they are read
        self.after = room(width)
        self.active = [room(hidden) for _ in range(depth)]  # outputs of the layers, after ReLU and dropout
        self.states = [self.active[0], *(room(hidden) if residual else active for active in self.active[1:])]
        self.normed = [room(hidden) for _ in self.norms]  # inputs of the other layers, and the hidden states
        self.changes = room(weights.change[0].shape[0])
        self.sums = room(width)  # what is normalised
        self.statistics: list[list[tuple[Tensor, Tensor]]] = []  # of the norms, the context's first
        self.hidden = self.normed[-1] if self.norms else self.states[-1]
        self._forward(read, context)

    def _forward(self, read: Tensor, context: Tensor) -> None:
        read_weight, change_weight = self.weights.read.t(), self.weights.change[0].t()
        layers = [(weight.t(), bias) for weight, bias in self.layers]
        for step in range(self.length):
            if self.kept is None:
                self.before[step] = context
            else:
                torch.mul(context, self.kept[step], out=self.before[step])
            context, statistics = self.before[step], []
            state = torch.addmm(read[step], context, read_weight, out=self.active[0][step])
            self._activate(0, step)
            for index, (weight, bias) in enumerate(layers):
                inputs = self._normalise(index, step, state, statistics) if self.norms else state
                torch.addmm(bias, inputs, weight, out=self.active[index + 1][step])
                self._activate(index + 1, step)
                if self.residual:
                    torch.add(state, self.active[index + 1][step], out=self.states[index + 1][step])
                state = self.states[index + 1][step]
            if self.norms:
                state = self._normalise(len(layers), step, state, statistics)
            torch.addmm(self.weights.change[1], state, change_weight, out=self.changes[step])
            self._update(context, step)
            context, mean, deviation = native.native_layer_norm(
                self.sums[step], [context.shape[1]], *self.weights.norm, EPSILON
            )
            torch.clamp(context, -LARGEST, LARGEST, out=self.after[step])
            context = self.after[step]
            self.statistics.append([(mean, deviation), *statistics])

    def _activate(self, layer: int, step: int) -> None:
        self.active[layer][step].relu_()
        if self.masks is not None:
            self.active[layer][step].mul_(self.masks[layer, step]).mul_(self.scale)

    def _normalise(self, index: int, step: int, state: Tensor, statistics: list[tuple[Tensor, Tensor]]) -> Tensor:
        output, mean, deviation = native.native_layer_norm(state, [state.shape[1]], *self.norms[index], EPSILON)
        statistics.append((mean, deviation))
        self.normed[index][step] = output
        return output

    def _update(self, context: Tensor, step: int) -> None:
        change, width = self.changes[step], context.shape[1]
        if self.rule == "gated":
            change[:, width:].sigmoid_()
            torch.mul(change[:, width : 2 * width], context, out=self.sums[step])
            self.sums[step].addcmul_(change[:, 2 * width :], change[:, :width])
        elif self.rule == "additive":
            torch.add(context, change, out=self.sums[step])
        else:
            torch.tanh(change, out=self.sums[step])

    def backward(self, hidden: Tensor, after: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients of `read`, of the first context, and of the weights, in the order of `flat_weights`.

        Args:
            hidden: gradient of the hidden states, (length, rows, hidden).
            after: gradient of the contexts after the tokens, (length, rows, context width); None: they are not used.
        """
        active = [torch.empty_like(part) for part in self.active]  # gradients before the ReLU
        changes, sums = torch.empty_like(self.changes), torch.empty_like(self.sums)
        normed = [torch.empty_like(part) for part in self.normed]
        context = torch.zeros_like(self.sums[0])
        for step in reversed(range(self.length)):
            if after is not None:
                context = context + after[step]
            torch.mul(context, self.after[step].abs() < LARGEST, out=sums[step])
            own, through = self._update_backward(step, sums[step], changes[step])
            state = torch.addmm(hidden[step], changes[step], self.weights.change[0])
            if self.norms:
                normed[-1][step] = state
                state = self._norm_of_layer_backward(len(self.layers), step, state)
            for index in reversed(range(len(self.layers))):
                gradient = self._activation_backward(index + 1, step, state, active)
                inputs = gradient @ self.layers[index][0]
                if self.norms:
                    normed[index][step] = inputs
                    inputs = self._norm_of_layer_backward(index, step, inputs)
                state = state + inputs if self.residual else inputs
            gradient = self._activation_backward(0, step, state, active)
            context = torch.addmm(own, gradient, self.weights.read) if through else gradient @ self.weights.read
            if self.kept is not None:
                context = context * self.kept[step]
        return active[0], context, self._weight_gradients(active, changes, sums, normed)

    def _update_backward(self, step: int, gradient: Tensor, change: Tensor) -> tuple[Tensor, bool]:
        """Gradient of the context that is updated, but through the layers, and whether there is one.

        Args:
            gradient: of the context after its norm.
            change: takes the gradient of what the context is updated by.
        """
        gradient = _norm_backward(gradient, self.sums[step], self.weights.norm, self.statistics[step][0])
        width = gradient.shape[1]
        if self.rule == "gated":
            new, forget, write = self.changes[step].split(width, 1)
            torch.mul(gradient, write, out=change[:, :width])
            change[:, width : 2 * width] = native.sigmoid_backward(gradient * self.before[step], forget)
            change[:, 2 * width :] = native.sigmoid_backward(gradient * new, write)
            return gradient * forget, True
        if self.rule == "additive":
            change.copy_(gradient)
            return gradient, True
        change.copy_(native.tanh_backward(gradient, self.sums[step]))
        return gradient, False

    def _activation_backward(self, layer: int, step: int, gradient: Tensor, active: list[Tensor]) -> Tensor:
        """Gradient of a layer before its ReLU; what is dropped is 0 there too."""
        torch.mul(gradient, self.active[layer][step] > 0, out=active[layer][step])
        return active[layer][step].mul_(self.scale) if self.masks is not None else active[layer][step]

    def _norm_of_layer_backward(self, index: int, step: int, gradient: Tensor) -> Tensor:
        state = self.states[index][step]
        return _norm_backward(gradient, state, self.norms[index], self.statistics[step][index + 1])

    def _weight_gradients(
        self, active: list[Tensor], changes: Tensor, sums: Tensor, normed: list[Tensor]
    ) -> list[Tensor]:
        """Each in one product over all tokens, from the gradients of what the weights give."""
        statistics = [
            tuple(map(torch.stack, zip(*of_norm, strict=True))) for of_norm in zip(*self.statistics, strict=True)
        ]
        gradients = [_product(active[0], self.before), *_linear_gradients(changes, self.hidden)]
        gradients += _norm_gradients(sums, self.sums, self.weights.norm, statistics[0])
        inputs = self.normed if self.norms else self.states
        for gradient, into in zip(active[1:], inputs, strict=False):
            gradients += _linear_gradients(gradient, into)
        for index, norm in enumerate(self.norms):
            gradients += _norm_gradients(normed[index], self.states[index], norm, statistics[index + 1])
        return gradients


def _product(gradient: Tensor, inputs: Tensor) -> Tensor:
    return gradient.flatten(0, 1).t() @ inputs.flatten(0, 1)


def _linear_gradients(gradient: Tensor, inputs: Tensor) -> list[Tensor]:
    """Of weight and bias."""
    return [_product(gradient, inputs), gradient.sum((0, 1))]


def _norm_backward(
    gradient: Tensor, inputs: Tensor, norm: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor]
) -> Tensor:
    """Of the inputs."""
    shape, only_inputs = [inputs.shape[-1]], [True, False, False]
    return native.native_layer_norm_backward(gradient, inputs, shape, *statistics, *norm, only_inputs)[0]


def _norm_gradients(
    gradient: Tensor, inputs: Tensor, norm: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Of scale and shift."""
    shape, only_weights = [inputs.shape[-1]], [False, True, True]
    return list(native.native_layer_norm_backward(gradient, inputs, shape, *statistics, *norm, only_weights)[1:])


class Steps(torch.autograd.Function):
    """All steps of a batch: (hidden states, contexts after the tokens), both (length, batch, width)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, options: dict[str, Any], read: Tensor, context: Tensor, *weights: Tensor) -> Any:
        """Read a text.

        Args:
            options: `rule`, `residual`, `layers` (how many there are beside the first), `kept`, `masks` and `scale`, see `Rows`.
            weights: those of `Weights`, one after the other.
        """
        end = 5 + 2 * options["layers"]
        named = Weights(weights[0], weights[1:3], weights[3:5], weights[5:end], weights[end:])

        def forward(rows: slice) -> Rows:
            kept, masks = (part if part is None else part[..., rows, :] for part in (options["kept"], options["masks"]))
            own = {"kept": kept, "masks": masks, "scale": options["scale"]}
            return Rows(named, options["rule"], options["residual"], read[:, rows], context[rows], **own)

        ctx.save_for_backward(*weights)
        ctx.rows = row_slices(len(context))
        ctx.parts = in_threads(forward, ctx.rows)
        return torch.cat([part.hidden for part in ctx.parts], 1), torch.cat([part.after for part in ctx.parts], 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, hidden: Tensor, after: Tensor) -> tuple:
        assert ctx.saved_tensors  # raises where a weight was changed after the forward pass

        def backward(place: int) -> tuple[Tensor, Tensor, list[Tensor]]:
            rows = ctx.rows[place]
            return ctx.parts[place].backward(hidden[:, rows], after[:, rows])

        reads, contexts, weights = zip(*in_threads(backward, range(len(ctx.parts))), strict=True)
        summed = [torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] for parts in zip(*weights, strict=True)]
        return None, torch.cat(reads, 1), torch.cat(contexts), *summed


def row_slices(rows: int) -> list[slice]:
    """The rows that each thread takes."""
    count = max(1, min(torch.get_num_threads(), rows // LEAST_ROWS))
    bounds = [rows * index // count for index in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def in_threads(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """What a function gives for each of these, in threads that compute alone."""
    if len(parts) == 1:
        return [function(parts[0])]
    threads = torch.get_num_threads()

    def alone(part: Any) -> Any:
        torch.set_num_threads(1)  # of this thread
        with torch.no_grad():  # which the calling thread has set for itself alone
            return function(part)

    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # of threads that begin later
