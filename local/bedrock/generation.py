"""Answers prompts with the local model: `python -m local.bedrock.generation <model> <cache>`.

A request is a line of JSON on standard input, `{"id", "adapter": path or null, "system",
"messages": [{"role", "text"}], "max_tokens", "temperature", "top_p"}`; its answer a line on
standard output, `{"id", "text", "stop_reason", "input_tokens", "output_tokens"}` or
`{"id", "refused"}` or `{"id", "error"}`. Requests of one kind that come together are answered
together. It ends when standard input does.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from peft import PeftModel

from bedrock.conversations import Message
from local.bedrock import weights
from local.bedrock.chat import prompt_tokens

GATHER_SECONDS = 0.02  # how long the first request of a batch waits for others
BATCH_SIZE = 16
TUNED_MODELS = 2  # kept in memory
REPETITION_PENALTY = 1.05  # keeps a small model that decodes greedily out of loops
CONTEXT = 4_096  # tokens of prompt and answer: what a laptop's memory can hold for a whole batch
LOWEST_TEMPERATURE = 0.01  # below, scores divided by it overflow: the likeliest token is taken


@dataclass(frozen=True)
class Request:
    """One prompt, and how to answer it."""

    id: int
    adapter: str | None
    system: str | None
    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float
    top_p: float

    @property
    def kind(self) -> tuple[str | None, float, float]:
        """What requests must have in common to be answered together."""
        return self.adapter, self.temperature, self.top_p


class Models:
    """The base model, and the tuned ones last asked for, each with its adapter merged."""

    def __init__(self, name: weights.ModelName, cache: Path) -> None:
        self._name = name
        self._cache = cache
        base = weights.load(name, cache)
        self.tokenizer = base.tokenizer
        self._base = base.model
        self._tuned: OrderedDict[str, Any] = OrderedDict()

    def get(self, adapter: str | None) -> Any:
        """The model with this adapter; the base model for none."""
        if adapter is None:
            return self._base
        if adapter not in self._tuned:
            model = weights.load(self._name, self._cache).model
            self._tuned[adapter] = PeftModel.from_pretrained(model, adapter).merge_and_unload()
            if len(self._tuned) > TUNED_MODELS:
                self._tuned.popitem(last=False)
        self._tuned.move_to_end(adapter)
        return self._tuned[adapter]


def main(name: weights.ModelName, cache: Path, answers: IO[str]) -> None:
    """Answer requests until standard input ends."""
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    models = Models(name, cache)
    torch.manual_seed(0)
    waiting: list[Request] = []
    while True:
        batch = _next_batch(requests, waiting)
        try:
            results = _answer(models, batch)
        except Exception as error:  # noqa: BLE001 - it is the answer, to those who asked
            traceback.print_exc()
            results = [{"error": repr(error)} for _ in batch]
        for request, result in zip(batch, results, strict=True):
            answers.write(json.dumps({"id": request.id, **result}) + "\n")
        answers.flush()


def _read(requests: "queue.SimpleQueue[Request]") -> None:
    for line in sys.stdin:
        requests.put(Request(**json.loads(line)))
    os._exit(0)


def _next_batch(requests: "queue.SimpleQueue[Request]", waiting: list[Request]) -> list[Request]:
    """The request that waited longest and others of its kind; what is left stays in `waiting`."""
    if not waiting:
        waiting.append(requests.get())
    deadline = time.monotonic() + GATHER_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            waiting.append(requests.get(timeout=left))
        except queue.Empty:
            break
    kind = waiting[0].kind
    batch = [request for request in waiting if request.kind == kind][:BATCH_SIZE]
    waiting[:] = [request for request in waiting if request not in batch]
    return batch


def _answer(models: Models, batch: list[Request]) -> list[dict[str, Any]]:
    tokenizer = models.tokenizer
    prompts = [
        prompt_tokens(tokenizer, request.system, [Message(**turn) for turn in request.messages])
        for request in batch
    ]
    fitting = [
        (request, prompt)
        for request, prompt in zip(batch, prompts, strict=True)
        if len(prompt) + request.max_tokens <= CONTEXT
    ]
    generated = iter(_generate(models, fitting))
    return [
        _result(tokenizer, request, prompt, next(generated))
        if (request, prompt) in fitting
        else {
            "refused": f"Prompt and answer together may be {CONTEXT:,} tokens long here, not "
            f"{len(prompt):,} and {request.max_tokens:,}."
        }
        for request, prompt in zip(batch, prompts, strict=True)
    ]


def _generate(models: Models, batch: list[tuple[Request, list[int]]]) -> list[list[int]]:
    """What follows each prompt: as many tokens as the longest answer of the batch, padded."""
    if not batch:
        return []
    requests, prompts = zip(*batch, strict=True)
    tokenizer = models.tokenizer
    width = max(map(len, prompts))
    padding = [[tokenizer.pad_token_id] * (width - len(prompt)) for prompt in prompts]
    tokens = torch.tensor([pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor(
        [[0] * len(pad) + [1] * len(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    )
    _, temperature, top_p = requests[0].kind
    samples = temperature >= LOWEST_TEMPERATURE
    sampling = {"temperature": temperature, "top_p": top_p} if samples else {}
    with torch.inference_mode():
        output = models.get(requests[0].adapter).generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max(request.max_tokens for request in requests),
            do_sample=samples,
            repetition_penalty=REPETITION_PENALTY,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    answers: list[list[int]] = output[:, width:].tolist()
    return answers


def _result(
    tokenizer: Any, request: Request, prompt: list[int], tokens: list[int]
) -> dict[str, Any]:
    tokens = tokens[: request.max_tokens]
    ended = tokenizer.eos_token_id in tokens
    if ended:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    return {
        "text": tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        "stop_reason": "end_turn" if ended else "max_tokens",
        "input_tokens": len(prompt),
        "output_tokens": len(tokens),
    }


if __name__ == "__main__":
    # What libraries print must not get among the answers.
    answer_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model_name, cache_folder = sys.argv[1:]
    if model_name not in ("smollm2", "tiny"):
        sys.exit(f"No such model: {model_name}")
    main(model_name, Path(cache_folder), answer_stream)  # type: ignore[arg-type]
