"""Generated command lines: whatever stands anywhere is a config, or errors for the user; no weights are read for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registries.models.converted import ConvertedModel
from registries.models.pretrained import PretrainedModel
from registries.option import CONF
from registries.registry import UserError
from studies.config.command_line import check_command_line

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
}
OPTIONS = [f"{group}={option}" for group, options in GROUPS.items() for option in options]
OPTIONS += [f"model@source={option}" for option in GROUPS["model"]] + ["recovery=[transfer,kl]", "recovery=[lora]"]

# A key of every section, of every type, of several components; and what looks like a key.
KEYS = """
seed resume skip_finished on_failure controls plugins output_dir cache_dir samples samples.prompts samples.prompts.0
samples.max_new_tokens activations activations.max_gb communication communication.questions trainer.early_stopping
trainer.early_stopping.patience trainer.devices trainer.max_steps trainer.max_epochs trainer.accelerator trainer
model.path model.dtype model.freeze model.name model.revision model.hidden_size model.num_heads model.num_layers
model.tokenizer model.family model.num_kv_heads source.path source source.name replacement.name replacement.layers
replacement.depth replacement.lambda_distance replacement.transfer_steps replacement.period replacement.fusion_rank
replacement.backend placement.layers placement.rank placement.budget placement.roles placement.parts placement.suffixes
placement.init placement.variant placement.alpha adapter.layers adapter.source_layers adapter.exchange adapter.epochs
adapter.contrast adapter.batch_size adapter.contrastive_weight compressor.tokens compressor.context
compressor.source_layer recovery recovery.kl recovery.kl.teacher recovery.lora.roles recovery.lora.layers recovery.x
dataset.block_size dataset.batch_size dataset.path dataset.fields dataset.prompt dataset.train_size dataset.encoding
dataset.period dataset.name optimizer.lr optimizer.schedule optimizer.beta1 optimizer tracking.uri experiment
experiment.name size size.seeds size.block_size run split prompt tasks task_path limit hydra.sweeper.params hydra.mode
hydra.sweep.dir hydra.searchpath hydra.callbacks hydra/launcher hydra.job.chdir nothing no.such.key a b .seed seed.
""".split()  # noqa: SIM905

VALUES = [
    *("", "0", "1", "-1", "2", "3.5", "1e400", "nan", "1e-3", "true", "null", "none", "???", "abc", "a b", "9" * 30),
    *("[]", "{}", "[1]", "[a,b]", "[[]]", "[null]", "[1.5,x]", "{a:1}", "{a:[1]}", "{name:toroidal}"),
    *("[{roles:[mlp]}]", "[{}]", "{a:{b:c}}", "[[0],[1]]", "[${seed}]"),
    *("1,2", "a,b", "0,", ",", "[0],[1]", "range(0)", "range(0,3)", "range(1,1e9)", "range(1,2,0)", "range(a)"),
    *("sort(3,1,2)", "sort(b,a,reverse=true)", "shuffle(1,2)", "glob(*)", "glob(*,exclude=n*)", "glob([t*,x])"),
    *("choice(1,2)", "choice()", "choice(a)", "interval(0,1)", "interval(a,b)", "interval(-1,1)", "tag(t,choice(1,2))"),
    *("int(3.5)", "str(3)", "float(abc)", "json_str({a:1})", "f(x)", "${seed}", "${nowhere}", "${trainer}"),
    *("${oc.env:X}", "${oc.env:HOME}", "${model}", "${.x}", "${now:%Y}", "x${seed}y", "${seed:}"),
    *("${", "$", "a=b", "#", "été", "日本", "\\", "'", '"', "'a'", '"a b"', "{", "[", "(", "a:b", "%"),
    *("?", "a;b", "a&b", "<", ">", "*", "!", "\n", "\t", " ", "a\\nb", "0x10", "1_000", "+3", ".5", "True", "NULL"),
    *("/", ".", "~", "~nobody_at_all/x", "/no/such/file", "./x", "a/b", "a/b/c", "x" * 300, "/" + "y" * 300),
    *("first:9%", "first:0%", "last:1", "spread:3", "8-15", "3-1", "-1", "ends:1", "[0,0]", "replaced"),
    *("all", "at:50%", "first:1", "0-999999999", "[-1]", "every:" + "9" * 20, "50%", "9" * 400 + "%"),
    *("toroidal", "phi2", "cpu", "gpu", "bf16-mixed", "gpt2", "random", "[original]", "[attention]", "[c_attn]"),
]  # fmt: skip

PLAIN = st.sampled_from(OPTIONS)
ASSIGNED = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(VALUES)
)
CHOSEN = st.builds("{}={}".format, st.sampled_from([*GROUPS, "model@source", "model@x"]), st.sampled_from(VALUES))
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
LINES = st.lists(PLAIN | ASSIGNED | ASSIGNED | ASSIGNED | CHOSEN | ANYTHING, min_size=1, max_size=6)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """Whoever reads weights fails; relative paths are looked for in an empty folder."""

    def fail(*arguments, **options):
        raise AssertionError("weights are read")

    monkeypatch.setattr(PretrainedModel, "_load", fail)
    monkeypatch.setattr(ConvertedModel, "_folder", fail)
    monkeypatch.chdir(tmp_path)


def require_config_or_errors(lines, multirun, config_name):
    """Nothing but errors of one line each may come of a command line that is refused."""
    try:
        handed = check_command_line(lines, multirun, config_name)
    except UserError as error:
        assert error.messages
        assert [message for message in error.messages if "\n" in message or not message.strip()] == []
    else:
        assert handed.devices >= 1


@pytest.mark.parametrize("examples", [8, pytest.param(32, marks=pytest.mark.full_product)])
def test_any_command_line_is_a_config_or_errors_for_the_user(no_weights, examples):
    @given(LINES, st.booleans(), st.sampled_from(["config", "config", "score"]))
    @settings(max_examples=examples, deadline=None)
    def test(lines, multirun, config_name):
        require_config_or_errors(lines, multirun, config_name)

    test()
