"""Similarity of translated states to the true ones."""

import pytest
import torch

from lightning_modules.similarity import similarity, spread_over_documents


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 3


DOCUMENTS = torch.arange(600) // 3


def test_perfect_translation():
    y = rows(600, 16)
    values = similarity(y, y, DOCUMENTS)
    assert values["r2"] == values["retrieval_at_1"] == 1
    assert values["cosine"] == pytest.approx(1) and values["cka"] == pytest.approx(1)
    assert (values["cka_rows"], values["retrieval_rows"]) == (600, 500)


def test_unrelated_states_are_at_chance():
    values = similarity(rows(600, 16), rows(600, 16, 1), DOCUMENTS)
    assert values["r2"] < -0.5
    assert all(abs(values[name]) < 0.05 for name in ("cosine", "cka", "cka_chance"))
    assert values["retrieval_at_1"] < 0.02


def test_the_mean_state_has_no_direction():
    y = rows(600, 16)
    values = similarity(y.mean(0).expand_as(y), y, DOCUMENTS)
    assert values == {"r2": pytest.approx(0, abs=1e-9), "cka_rows": 600}


def test_scale_matters_to_r2_alone():
    y = rows(600, 16)
    values = similarity(2 * y, y, DOCUMENTS)
    assert values["r2"] < 0 and values["cosine"] == pytest.approx(1) and values["cka"] == pytest.approx(1)


def test_rows_are_of_as_many_documents_as_there_are():
    documents = torch.tensor([0] * 50 + [1] * 3 + [2] * 7)
    chosen = documents[spread_over_documents(documents, 12)]
    assert chosen.bincount().tolist() == [5, 3, 4] or chosen.bincount().tolist() == [4, 3, 5]
    assert len(spread_over_documents(documents, 500)) == 60
    assert documents[spread_over_documents(documents, 3)].tolist() == [0, 1, 2]
