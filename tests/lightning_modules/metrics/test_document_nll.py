from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.metrics import DocumentNLL, TokenNLL
from lightning_modules.nll import token_nll

VOCABULARY = 11


def example(rows, length, documents, seed=0, ignored=0.0):
    """Logits, labels and documents of random blocks; a document may come in several blocks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCABULARY, generator=generator) * 3
    labels = torch.randint(VOCABULARY, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < ignored] = -100
    numbers = torch.randint(documents, (rows, length), generator=generator).sort(1).values
    return logits, labels, numbers


def independent(batches):
    """[sum of -log p, number of tokens] by document, token by token in double precision."""
    sums = defaultdict(lambda: [0.0, 0])
    for logits, labels, documents in batches:
        for row in range(len(labels)):
            for t in range(1, labels.shape[1]):
                if labels[row, t] != -100:
                    scores = logits[row, t - 1].double()
                    of_document = sums[documents[row, t].item()]
                    of_document[0] -= (scores[labels[row, t]] - scores.logsumexp(0)).item()
                    of_document[1] += 1
    return [tuple(sums[number]) for number in sorted(sums)]


def measured(batches):
    metric = DocumentNLL()
    for logits, labels, documents in batches:
        metric.update(token_nll(logits, labels), labels, documents)
    return metric.compute()


def same(one, other):
    assert [count for _, count in one] == [count for _, count in other]
    assert [nll for nll, _ in one] == pytest.approx([nll for nll, _ in other], rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 6)), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3]),
)
def test_sums_and_counts_by_document_over_batches(shapes, ignored):
    batches = [example(*shape, seed=seed, ignored=ignored) for seed, shape in enumerate(shapes)]
    same(measured(batches), independent(batches))


def test_labels_of_minus_100_are_left_out():
    logits, labels, _ = example(2, 5, 1)
    documents = torch.tensor([[0, 0, 0, 1, 1], [1, 2, 2, 3, 3]])
    labels[0, 1] = -100
    labels[1, 1:3] = -100  # all there is of document 2
    batch = (logits, labels, documents)
    assert [count for _, count in measured([batch])] == [1, 2, 2]
    same(measured([batch]), independent([batch]))


def test_the_first_token_of_a_block_is_of_no_ones_score():
    logits, labels, _ = example(1, 4, 1)
    documents = torch.tensor([[7, 8, 8, 8]])
    ((_, count),) = measured([(logits, labels, documents)])
    assert count == 3


def test_the_totals_are_those_of_token_nll():
    batches = [example(3, 8, 5, seed, ignored=0.2) for seed in range(3)]
    tokens = TokenNLL()
    for logits, labels, _ in batches:
        tokens.update(logits, labels)
    scores = measured(batches)
    assert sum(count for _, count in scores) == tokens.tokens
    assert sum(nll for nll, _ in scores) == pytest.approx(tokens.nll.item(), rel=1e-12)


def test_documents_come_by_their_number_whatever_the_order_of_the_batches():
    batches = [example(2, 6, 4, seed) for seed in range(3)]
    same(measured(batches[::-1]), measured(batches))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_nothing_is_kept_after_a_reset():
    metric = DocumentNLL()
    logits, labels, documents = example(2, 5, 3)
    for _ in range(2):
        metric.update(token_nll(logits, labels), labels, documents)
        scores = metric.compute()
        metric.reset()
    same(scores, independent([(logits, labels, documents)]))
    assert metric.compute() == []
