import pytest
import torch


@pytest.mark.parametrize(("queries", "query_start", "key_start"), [(40, 0, 0), (1, 39, 0), (7, 33, 0), (5, 60, 25)])
def test_without_a_mask_it_is_causal_wherever_the_queries_start(queries, query_start, key_start, make_core, states):
    query, key, value = states(40)
    query = query[:, :, -queries:]
    causal = torch.ones(queries, 40, dtype=torch.bool).tril(query_start - key_start)
    scores = query @ key.repeat_interleave(2, dim=1).transpose(-1, -2) * 0.25
    expected = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ value.repeat_interleave(2, dim=1)
    output = make_core("standard")(query, key, value, None, 0.25, query_start, key_start)
    torch.testing.assert_close(output, expected)


def test_a_mask_is_obeyed(make_core, states):
    query, key, value = states(6)
    only_itself = torch.eye(6, dtype=torch.bool)[None, None]
    output = make_core("standard")(query, key, value, only_itself, 0.25, 0, 0)
    torch.testing.assert_close(output, value.repeat_interleave(2, dim=1))
