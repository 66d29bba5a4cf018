import pytest
import torch

from registries.attention.fusion import DepthFusion

DEPTH, HEAD_WIDTH = 4, 12


def fused_slices(fusion, output):
    """What the docstring says, slice by slice."""
    slices, mixing = output.unflatten(-1, (DEPTH, -1)), fusion.mixing()
    return torch.cat([sum(mixing[k, j] * slices[..., k, :] for k in range(DEPTH)) for j in range(DEPTH)], dim=-1)


@pytest.mark.parametrize("mode", ["low_rank", "attention", "mean", "identity"])
def test_slice_j_becomes_the_sum_of_all_slices_weighted_by_column_j(mode):
    torch.manual_seed(0)
    fusion, output = DepthFusion(DEPTH, HEAD_WIDTH, mode), torch.randn(2, 3, 5, HEAD_WIDTH)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(fusion(output), fused_slices(fusion, output))


@pytest.mark.parametrize("rank", [1, 2, 4, None])
def test_low_rank_starts_as_the_identity_and_can_leave_it(rank):
    fusion, output = DepthFusion(DEPTH, HEAD_WIDTH, "low_rank", rank), torch.randn(3, HEAD_WIDTH)
    assert fusion(output).equal(output)
    fusion(output).square().sum().backward()
    assert fusion.right.grad.abs().max() > 0
    torch.nn.init.normal_(fusion.right)
    change = fusion.mixing() - torch.eye(DEPTH)
    torch.testing.assert_close(change, fusion.left @ fusion.right.T / (rank or 1) ** 0.5)
    assert torch.linalg.matrix_rank(change) == (rank or 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_without_the_residual_only_the_rank_is_left(rank):
    fusion = DepthFusion(DEPTH, HEAD_WIDTH, "low_rank", rank, residual=False)
    assert torch.linalg.matrix_rank(fusion.mixing()) == rank
    torch.testing.assert_close(fusion.left.T @ fusion.left, torch.eye(rank))
    torch.testing.assert_close(fusion.right.T @ fusion.right, torch.eye(rank))


@pytest.mark.parametrize(("depth", "rank"), [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4)])
def test_the_default_rank_is_a_quarter_of_the_depth(depth, rank):
    assert DepthFusion(depth, 16, "low_rank").left.shape == (depth, rank)


def test_attention_sums_to_one_over_the_slices_that_it_sums():
    fusion = DepthFusion(DEPTH, HEAD_WIDTH, "attention")
    torch.testing.assert_close(fusion.mixing().sum(dim=0), torch.ones(DEPTH))
    alike = torch.randn(3, HEAD_WIDTH // DEPTH).repeat(1, DEPTH)  # all slices the same: their mean is each of them
    torch.testing.assert_close(fusion(alike), alike)
    assert len(list(fusion.parameters())) == 2


def test_mean_makes_every_slice_the_average():
    fusion, output = DepthFusion(DEPTH, HEAD_WIDTH, "mean"), torch.randn(3, HEAD_WIDTH)
    average = output.unflatten(-1, (DEPTH, -1)).mean(dim=-2)
    torch.testing.assert_close(fusion(output), average.repeat(1, DEPTH))
    assert list(fusion.parameters()) == []


def test_identity_mixes_nothing():
    fusion, output = DepthFusion(DEPTH, HEAD_WIDTH, "identity"), torch.randn(3, HEAD_WIDTH)
    assert fusion(output).equal(output)
    assert list(fusion.parameters()) == []


@pytest.mark.parametrize("mode", ["low_rank", "attention", "mean", "identity"])
def test_it_computes_in_the_dtype_that_comes_in(mode):
    output = torch.randn(3, HEAD_WIDTH, dtype=torch.bfloat16)
    assert DepthFusion(DEPTH, HEAD_WIDTH, mode)(output).dtype == torch.bfloat16
