import math

import pytest
import torch

from lightning_modules.metrics import TokenNLL
from lightning_modules.nll import token_nll
from registries.models.random import byte_tokenizer

VOCABULARY = 11


def example(rows=3, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCABULARY, generator=generator) * 3
    return logits, torch.randint(VOCABULARY, (rows, length), generator=generator)


def independent_sum(logits, labels):
    """Sum of -log p over the scored tokens, and their number, token by token in double precision."""
    total, count = 0.0, 0
    for row in range(len(labels)):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                scores = logits[row, t - 1].double()
                total -= (scores[labels[row, t]] - scores.logsumexp(0)).item()
                count += 1
    return total, count


def test_it_is_the_sum_of_log_probabilities():
    logits, labels = example()
    metric = TokenNLL()
    metric.update(logits, labels)
    total, count = independent_sum(logits, labels)
    scores = metric.compute()
    assert count == 18
    assert scores["loss"] == pytest.approx(total / count, rel=1e-6)
    assert scores["ppl"] == math.exp(scores["loss"])
    assert "bpb" not in scores


def test_labels_of_minus_100_are_not_scored():
    logits, labels = example()
    labels[0, 3:] = labels[1, :2] = labels[2] = -100
    metric = TokenNLL()
    metric.update(logits, labels)
    total, count = independent_sum(logits, labels)
    assert count == 2 + 5
    assert metric.compute()["loss"] == pytest.approx(total / count, rel=1e-6)
    assert token_nll(logits, labels)[labels[:, 1:] == -100].eq(0).all()


def test_a_model_that_knows_the_next_token_has_no_loss():
    """It counts upwards; a shift too many or too few scores it as hopeless."""
    labels = torch.arange(8).repeat(2, 1)
    logits = torch.full((2, 8, VOCABULARY), -20.0).scatter(2, (labels + 1)[..., None], 20.0)
    metric = TokenNLL()
    metric.update(logits, labels)
    assert metric.compute() == pytest.approx({"loss": 0, "ppl": 1, "accuracy": 1}, abs=1e-6)
    for wrong in (logits.roll(1, dims=1), logits.roll(-1, dims=1)):  # no shift, and two
        metric.reset()
        metric.update(wrong, labels)
        assert metric.compute()["loss"] > 20
        assert metric.compute()["accuracy"] == 0


def test_batches_count_by_their_tokens():
    """Not by batch or by row: the mean of means differs where lengths do."""
    batches = [example(5, 9, seed=1), example(1, 3, seed=2), example(2, 20, seed=3)]
    batches[0][1][:, 4:] = -100
    metric, sums = TokenNLL(), [independent_sum(*batch) for batch in batches]
    for logits, labels in batches:
        metric.update(logits, labels)
    loss = metric.compute()["loss"]
    assert loss == pytest.approx(sum(total for total, _ in sums) / sum(count for _, count in sums), rel=1e-6)
    assert loss != pytest.approx(sum(total / count for total, count in sums) / 3, rel=1e-3)


def test_accuracy_counts_scored_tokens():
    labels = torch.tensor([[0, 1, 2, 3, -100, -100]])
    logits = torch.zeros(1, 6, VOCABULARY)
    for t, guess in enumerate([1, 5, 3, 0, 0, 0]):
        logits[0, t, guess] = 1
    metric = TokenNLL()
    metric.update(logits, labels)
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_bits_per_byte_of_a_known_text():
    """Every byte has probability 1 / 256: 8 bits each; a character of two bytes counts as two."""
    text = "naïve café 日本"
    tokenizer = byte_tokenizer()
    labels = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
    logits = torch.zeros(1, labels.shape[1], 256)
    sizes = torch.tensor([1] * 256 + [0])
    metric = TokenNLL(sizes)
    metric.update(logits, labels)
    assert metric.bytes == len(text.encode())
    assert metric.compute()["bpb"] == pytest.approx(8)


def test_bits_per_byte_with_tokens_of_several_bytes():
    sizes = torch.tensor([1, 2, 4])
    labels = torch.tensor([[0, 1, 2, 2, -100]])  # the first is not scored, and the last is none
    metric = TokenNLL(sizes)
    metric.update(torch.zeros(1, 5, 3), labels)
    assert metric.compute()["bpb"] == pytest.approx(3 * math.log2(3) / (2 + 4 + 4))


def test_it_sums_in_fp32_where_logits_are_bf16():
    logits, labels = example(4, 50)
    metric = TokenNLL()
    metric.update(logits.bfloat16(), labels)
    total, count = independent_sum(logits.bfloat16().float(), labels)
    assert metric.compute()["loss"] == pytest.approx(total / count, rel=1e-6)
    assert token_nll(logits.bfloat16(), labels).dtype == torch.float32


def test_what_was_computed_before_is_taken_over():
    logits, labels = example()
    metric = TokenNLL()
    metric.update(logits, labels, token_nll(logits, labels) * 2)
    total, count = independent_sum(logits, labels)
    assert metric.compute()["loss"] == pytest.approx(2 * total / count, rel=1e-6)


def test_no_scored_token_is_an_error():
    logits, labels = example(2, 1)
    metric = TokenNLL()
    metric.update(logits, labels)
    with pytest.raises(ValueError, match="no token was scored"):
        metric.compute()


def test_a_huge_loss_has_infinite_perplexity():
    metric = TokenNLL()
    metric.update(torch.tensor([[[0.0, 5000.0], [0.0, 0.0]]]), torch.tensor([[0, 0]]))
    assert metric.compute()["ppl"] == math.inf


def test_gradients_flow_through_the_loss():
    logits, labels = example()
    logits.requires_grad_()
    token_nll(logits, labels).sum().backward()
    assert logits.grad[:, -1].eq(0).all()
    assert logits.grad[:, :-1].ne(0).any()


def test_unknown_words_are_counted_and_spelled():
    logits, labels = example()
    labels[:, 3] = 1
    sizes = torch.full((VOCABULARY,), 5.0, dtype=torch.float64)
    sizes[1] = 7.5
    metric = TokenNLL(sizes, unknown=1)
    for row in range(3):  # in several batches
        metric.update(logits[row : row + 1], labels[row : row + 1])
    scores, targets = metric.compute(), labels[:, 1:]
    unknown, nll = (targets == 1).sum().item(), token_nll(logits, labels)
    assert unknown >= 3
    assert scores["unknown_rate"] == unknown / 18
    assert scores["majority_accuracy"] == targets.flatten().bincount().max().item() / 18
    assert math.log(scores["ppl_known"]) == pytest.approx(nll[targets != 1].mean().item(), rel=1e-6)
    bits = nll.sum().item() / math.log(2) + 8 * 7.5 * unknown
    assert scores["bpb"] == pytest.approx(bits / (5 * (18 - unknown) + 7.5 * unknown), rel=1e-6)


def test_a_text_of_unknown_words_alone():
    logits, labels = example()
    metric = TokenNLL(torch.ones(VOCABULARY), unknown=1)
    metric.update(logits, torch.ones_like(labels))
    scores = metric.compute()
    assert scores["unknown_rate"] == scores["majority_accuracy"] == 1
    assert math.isnan(scores["ppl_known"])
