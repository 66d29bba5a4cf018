"""Moments of a study at which its process ends itself, as with SIGKILL: `KILLS[moment]()` makes it so."""

import os
import signal

import torch

import studies.stage_training as stage_training
from lightning_modules.callbacks import checkpoint
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.stages.next_token import NextToken
from lightning_modules.stages.transfer import Transfer
from studies.run.scores import Scores


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name, count, condition=lambda *arguments: True):
    """Die before the call number `count` (from 0) of `owner.name` for which the condition holds."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        if condition(*arguments):
            calls.append(name)
            if len(calls) > count:
                die()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def in_stage(name):
    return lambda module, *arguments: module.stage_name == name and module.trainer.state.fn == "fit"


KILLS = {
    "never": lambda: None,
    "transfer, at its fourth step": lambda: at_call(Transfer, "loss", 3),
    "transfer, in its validation": lambda: at_call(CausalLMModule, "validation_step", 1, in_stage("transfer")),
    "transfer, before its checkpoint is renamed": lambda: at_call(checkpoint.os, "replace", 1, is_checkpoint),
    "after the transfer, before its weights are saved": lambda: at_call(stage_training, "save_weights", 0),
    "after the transfer, before its score": lambda: at_call(Scores, "record", 0, is_transfer),
    "before the first step of training": lambda: at_call(NextToken, "loss", 0),
    "training, between accumulated batches": lambda: at_call(NextToken, "loss", 7),
    "training, in its second validation": lambda: at_call(CausalLMModule, "validation_step", 5, in_stage("next_token")),
    "training, before an optimizer step": lambda: at_call(torch.optim.AdamW, "step", 3),
    "before the final score": lambda: at_call(Scores, "record", 0, is_final),
}


def is_checkpoint(source, target):
    return str(target).endswith("last.ckpt")


def is_transfer(scores, record, prefix):
    return prefix == "transfer/"


def is_final(scores, record, prefix):
    return prefix == "val/"
