"""`raylign chat`: talk to a tuned policy in the terminal, in plain transformers.

In: a run's or a pipeline's directory, a model directory or any model reference. Out: streamed answers. What is typed
is text, whatever it spells: only the template writes control tokens. Left out: serving (raylign serve).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def chat(
    model: Annotated[str, typer.Argument(help="A run's or model's directory, a hub id or package:NAME/FILE.")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say one thing and leave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
) -> None:
    """Talk to a model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = _model_path(model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    turns: list[dict[str, str]] = []
    if message is None:
        typer.echo(f"{path}: an empty line ends the conversation")
    while said := (message if message is not None else _asked()):
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": _answer(network, tokenizer, turns, max_tokens, temperature)})
        if message is not None:
            return


def _asked() -> str:
    """What the user types; nothing at the end of the input or at Ctrl-C, which end the conversation."""
    try:
        return typer.prompt("you", default="", show_default=False)
    except typer.Abort:
        typer.echo()
        return ""


def _answer(network: Any, tokenizer: Any, turns: list[dict[str, str]], max_tokens: int, temperature: float) -> str:
    import torch
    from transformers import TextStreamer

    from actors.data.as_text import chat_ids

    prompt = torch.tensor([chat_ids(tokenizer, turns, add_generation_prompt=True)])
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    mask = torch.ones_like(prompt)
    out = network.generate(
        input_ids=prompt, attention_mask=mask, **sampling, max_new_tokens=max_tokens, streamer=streamer
    )
    return tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)


def _model_path(model: str) -> Path:
    from actors.models.pretrained import resolve_model
    from cluster.run.checkpoints.policies import exported_policy

    return exported_policy(model) or resolve_model(model)
