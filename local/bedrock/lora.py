"""Tunes a small model with LoRA on what assistants say.

LoRA: https://arxiv.org/abs/2106.09685. How Bedrock's hyperparameters come to be the ones used here
is told in docs/local-bedrock.md.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from local.bedrock.chat import IGNORED, Example
from local.bedrock.weights import Weights

RANK = 16
ALPHA = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYERS = 20  # the uppermost; those below stay as they are, and are not differentiated
SEED = 20
TOKENS_AT_ONCE = 1_024  # padding included; a larger batch is computed in parts
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Plan:
    """How to train. `learning_rate` is LoRA's, reached after `warmup_steps` and falling to 0."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int


@dataclass(frozen=True)
class Step:
    """One step's mean loss per learned token, before the step changed the model."""

    number: int
    epoch: int
    loss: float
    validation_loss: float | None = None  # after the last step of an epoch


def tune(
    weights: Weights, training: Sequence[Example], validation: Sequence[Example], plan: Plan
) -> tuple[Any, Iterator[Step]]:
    """The model with an adapter (a `PeftModel`), and the steps that train it as they are taken.

    The first step has number 0: the loss on validation data before training, if there is any.
    """
    layers = weights.model.config.num_hidden_layers
    torch.manual_seed(SEED)
    model = get_peft_model(
        weights.model,
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=TARGETS,
            layers_to_transform=list(range(max(0, layers - LAYERS), layers)),
        ),
    )
    return model, _steps(model, weights.tokenizer.pad_token_id, training, validation, plan)


def _steps(
    model: Any,
    pad: int,
    training: Sequence[Example],
    validation: Sequence[Example],
    plan: Plan,
) -> Iterator[Step]:
    if validation:
        loss = _validation_loss(model, pad, validation)
        yield Step(number=0, epoch=0, loss=loss, validation_loss=loss)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0)
    total = plan.epochs * math.ceil(len(training) / plan.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _share_of_rate(step, total, plan.warmup_steps)
    )
    number = 0
    for epoch in range(1, plan.epochs + 1):
        batches = _batches(training, plan.batch_size, random.Random(f"{SEED}-{epoch}"))  # noqa: S311
        for index, batch in enumerate(batches, 1):
            learned = sum(example.learned for example in batch)
            loss = 0.0
            for part in _parts(batch):
                part_loss = _loss(model, pad, part) / learned
                part_loss.backward()
                loss += part_loss.item()
            torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            number += 1
            last = index == len(batches)
            yield Step(
                number,
                epoch,
                loss,
                _validation_loss(model, pad, validation) if last and validation else None,
            )


def _share_of_rate(step: int, total: int, warmup: int) -> float:
    """Rises linearly over the warm-up, then falls linearly to 0 at the end."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup))


def _validation_loss(model: Any, pad: int, examples: Sequence[Example]) -> float:
    """Mean loss per learned token."""
    total = 0.0
    with torch.no_grad():
        for part in _parts(sorted(examples, key=lambda example: len(example.tokens))):
            total += _loss(model, pad, part).item()
    return total / sum(example.learned for example in examples)


def _loss(model: Any, pad: int, examples: Sequence[Example]) -> torch.Tensor:
    """Summed loss over the learned tokens; logits are computed for these only."""
    tokens = pad_sequence(
        [torch.tensor(example.tokens) for example in examples],
        batch_first=True,
        padding_value=pad,
    )
    labels = pad_sequence(
        [torch.tensor(example.labels) for example in examples],
        batch_first=True,
        padding_value=IGNORED,
    )[:, 1:]
    learned = labels != IGNORED
    base = model.get_base_model()
    # Padding is on the right, so the causal mask alone keeps it out of sight.
    with disable_input_dtype_casting(model), _precision(base.dtype):
        hidden = base.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = base.lm_head(hidden[:, :-1][learned])
    return cross_entropy(logits.float(), labels[learned], reduction="sum")


def _precision(dtype: torch.dtype) -> Any:
    """The adapter's own weights are float32 always: they are cast as they are used."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _batches(examples: Sequence[Example], size: int, order: random.Random) -> list[list[Example]]:
    """Batches of examples of similar length, in random order."""
    shuffled = order.sample(examples, len(examples))
    shuffled.sort(key=lambda example: len(example.tokens) // 16)
    batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    order.shuffle(batches)
    return batches


def _parts(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """The examples in parts of at most TOKENS_AT_ONCE tokens, or of one example."""
    part: list[Example] = []
    for example in examples:
        longest = max(len(one.tokens) for one in [*part, example])
        if part and longest * (len(part) + 1) > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(example)
    yield part
