"""What every recurrent language model keeps, whatever its recurrence."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

import registries.recurrent_lm  # noqa: F401
from lightning_modules.preflight import check, logits
from registries import MODELS, UserError
from registries.models.recurrence import RECURRENCES, RecurrentOutput
from registries.models.recurrent_loader import recurrent_model

OPTIONS = {
    "context_lm": [
        {"update": update, "residual": plain is False, "norm": plain is False, "dropout": 0.0}
        for update in ("gated", "additive", "overwrite", "linear")
        for plain in (True, False)
    ],
    "lstm": [{"num_layers": 2, "dropout": 0.0}],
}
SMALL = {
    "context_lm": {"context_dim": 12, "hidden_dim": 24, "embed_dim": 10},
    "lstm": {"hidden_dim": 24, "embed_dim": 10},
}
CASES = [(name, options) for name in RECURRENCES for options in OPTIONS.get(name, [{}])]
each_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda part: part if isinstance(part, str) else str(part)
)


def build(name, options):
    torch.manual_seed(0)
    model = MODELS.build(name, **SMALL.get(name, {}), **options).model(torch.float32)
    for parameter in model.parameters():  # so that the state matters
        if parameter.dim() == 2:
            parameter.data *= 5 if name == "context_lm" else 1.5
    return model.double()  # such a recurrence blows rounding up


def random_tokens(rows, length, seed=0):
    return torch.randint(257, (rows, length), generator=torch.Generator().manual_seed(seed))


@each_case
def test_it_keeps_the_rules(name, options):
    """Causality, prefixes, padding, and the state that is carried on."""
    results = check(build(name, options))
    assert [rule for rule, result in results.items() if not result["passed"]] == []


@each_case
def test_the_whole_text_at_once_is_token_by_token(name, options):
    model, tokens = build(name, options), random_tokens(3, 40)
    state, steps = None, []
    for index in range(tokens.shape[1]):
        output = model(tokens[:, index : index + 1], past_key_values=state, use_cache=True)
        state = output.past_key_values
        steps.append(output.logits)
    assert state.get_seq_length() == 40
    together = model(tokens).logits
    assert (torch.cat(steps, 1) - together).abs().max() < 1e-7 * together.abs().max()
    without_first = logits(model, tokens[:, 1:])
    assert (together[:, 2] - without_first[:, 1]).abs().max() > 1e-3  # the first token is remembered


@each_case
def test_documents_in_one_row_do_not_see_each_other(name, options):
    model, tokens = build(name, options), random_tokens(2, 12)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]])
    packed = logits(model, tokens, position_ids=positions)
    for row, starts in enumerate([(0, 5, 8, 12), (0, 9, 12)]):
        for start, stop in pairwise(starts):
            alone = logits(model, tokens[row : row + 1, start:stop])
            assert (packed[row, start:stop] - alone).abs().max() < 1e-5 * packed.abs().max()


@each_case
def test_gradients_are_those_of_token_by_token(name, options):
    model, tokens = build(name, options).train(), random_tokens(2, 9)
    weights = torch.randn(2, 9, 257, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(pieces):
        model.zero_grad()
        state, outputs = None, []
        for piece in pieces:
            output = model(piece, past_key_values=state)
            state = output.past_key_values
            outputs.append(output.logits)
        (torch.cat(outputs, 1) * weights).sum().backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    together, in_turn = gradients([tokens]), gradients(tokens.split(1, 1))
    assert together.keys() == in_turn.keys()
    for key, gradient in together.items():
        assert (gradient - in_turn[key]).abs().max() <= 1e-9 * in_turn[key].abs().max().clamp_min(1e-6), key


@each_case
def test_transformers_saves_loads_and_generates(name, options, tmp_path):
    model, prompt = build(name, options), random_tokens(2, 5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert logits(loaded, prompt).equal(logits(model, prompt))
    kept, anew = (
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, use_cache=use, do_sample=False
        )
        for use in (True, False)
    )
    assert kept.equal(anew)
    beams = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, num_beams=3)
    assert beams.shape == (2, 13)


def test_a_state_is_of_one_size():
    model = build("context_lm", {})
    sizes = {
        sum(tensor.numel() for tensor in model(random_tokens(1, length)).past_key_values.tensors) for length in (1, 50)
    }
    assert sizes == {12}


@pytest.mark.parametrize(("name", "options", "expected"), [
    ("context_lm", {"num_layers": 1}, 1_426_152),
    ("context_lm", {"num_layers": 4}, 2_214_120),
    ("context_lm", {"num_layers": 5}, 2_476_776),
    ("context_lm", {"num_layers": 6}, 2_739_432),
    ("context_lm", {"num_layers": 7}, 3_002_088),
])  # fmt: skip
def test_parameters_are_those_of_the_documents(name, options, expected):
    model = MODELS.build(name, num_tokens=1000, **options).model(torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", RECURRENCES.names())
@pytest.mark.parametrize("size", [400_000, "2.74M"])
def test_a_number_of_parameters_solves_the_widths(name, size):
    model = MODELS.build(name, num_tokens=1000, parameters=size).model(torch.float32)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx({400_000: 400_000}.get(size, 2_740_000), rel=0.01)


def test_the_widths_of_the_documents_give_their_number():
    config = MODELS.build("context_lm", num_tokens=1000, num_layers=6, parameters=2_739_432).config()
    assert [config["arguments"][key] for key in ("hidden_dim", "context_dim", "embed_dim")] == [512, 256, 256]


def test_a_number_that_no_width_reaches():
    with pytest.raises(
        UserError, match=r"model.parameters=1K: no width gives 1,000 parameters; the nearest is \d+,\d+"
    ):
        MODELS.build("lstm", num_tokens=1000, parameters="1K")


def test_a_new_recurrence_is_one_class(monkeypatch):
    """Here the mean of the embeddings so far."""
    for registry in (MODELS, RECURRENCES):
        registry.names()
        monkeypatch.setattr(registry, "_components", dict(registry._components))

    @recurrent_model("mean")
    class Mean(torch.nn.Module):
        widths = ("width",)

        def __init__(self, width: int = 8):
            super().__init__()
            self.input_dim = self.output_dim = width

        def forward(self, embeddings, state=None, starts=None):
            total, count = state or (torch.zeros_like(embeddings[:, 0]), embeddings.new_zeros(len(embeddings), 1))
            hidden = []
            for step in range(embeddings.shape[1]):
                if starts is not None:
                    total, count = (part.masked_fill(starts[:, step, None], 0) for part in (total, count))
                total, count = total + embeddings[:, step], count + 1
                hidden.append(total / count)
            return RecurrentOutput(torch.stack(hidden, 1), (total, count))

    model = MODELS.build("mean", parameters=10_000).model(torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(10_000, rel=0.02)
    assert all(result["passed"] for result in check(model).values())
