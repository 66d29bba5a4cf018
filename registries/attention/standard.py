"""Plain causal attention: with copied projections the model's own, with random projections every core's control."""

from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from registries import ATTENTION
from registries.architectures import AttentionShape
from registries.attention.backends import no_bias, position_weights


@ATTENTION.register("standard")
class StandardAttention(nn.Module):
    """Scaled dot-product attention, as the model had it."""

    own_positions = False
    keeps_function = True

    def __init__(self, shape: AttentionShape):
        super().__init__()
        self.groups = shape.num_heads // shape.num_kv_heads

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        if self.groups > 1:
            key, value = key.repeat_interleave(self.groups, dim=1), value.repeat_interleave(self.groups, dim=1)
        causal = mask is None and query.shape[2] > 1
        if causal and query.shape[2] != key.shape[2]:  # is_causal would align the first query with the first key
            mask = query.new_ones(query.shape[2], key.shape[2]).tril(query_start - key_start).bool()
            causal = False
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scaling)

    def weights(self, query, key, mask, scaling, query_start, key_start):
        """Attention weights, (batch, heads, queries, keys)."""
        starts = {"query_start": query_start, "key_start": key_start}
        return position_weights(query, key, mask=mask, bias=no_bias, scaling=scaling, depth=1, **starts)
