"""Similarity of translated states to the true ones."""

import pytest
import torch

from lightning_modules.two_models.similarity import similarity, spread_over_documents


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 3


DOCUMENTS = torch.arange(600) // 3


def test_perfect_translation():
    y = rows(600, 16)
    values = similarity(y, y, DOCUMENTS)
    assert values["r2"] == values["retrieval_at_1"] == 1
    assert values["cosine"] == pytest.approx(1) and values["cka"] == pytest.approx(1)
    assert (values["cka_rows"], values["retrieval_rows"]) == (600, 500)


def test_chance_is_that_of_rows_paired_at_random():
    """So it is near zero also where the translation is right, and the same each time."""
    y = rows(600, 16)
    values = similarity(y + 0.1 * rows(600, 16, 1), y, DOCUMENTS)
    assert values["cka"] > 0.9 and abs(values["cka_chance"]) < 0.05
    assert values["cka_chance"] == similarity(y + 0.1 * rows(600, 16, 1), y, DOCUMENTS)["cka_chance"]


def test_states_far_from_zero_are_measured_in_double_precision():
    """Models have channels whose mean is thousands of times their spread."""
    y = rows(600, 16) / 50 + 3000
    translated = y + rows(600, 16, 1) / 100 - 0.03
    exact_y, exact = y.double().numpy(), translated.double().numpy()
    squares = ((exact_y - exact_y.mean(0)) ** 2).sum()
    values = similarity(translated, y, DOCUMENTS)
    assert values["r2"] == pytest.approx(1 - ((exact - exact_y) ** 2).sum() / squares, abs=1e-6)
    own, theirs = exact - exact.mean(0), exact_y - exact_y.mean(0)
    cosines = (own * theirs).sum(1) / ((own**2).sum(1) * (theirs**2).sum(1)) ** 0.5
    assert values["cosine"] == pytest.approx(cosines.mean(), abs=1e-6)


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
