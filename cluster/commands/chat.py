"""`raylign chat`: talk to a tuned policy in the terminal, in plain transformers.

In: a run's or a pipeline's directory, a model directory or any model reference. Out: streamed answers. Left out:
serving (raylign serve).
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
    from transformers import TextStreamer

    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = network.generate(**inputs, **sampling, max_new_tokens=max_tokens, streamer=streamer)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _model_path(model: str) -> Path:
    from actors.models.pretrained import resolve_model
    from cluster.run.checkpoints.policies import exported_policy

    return exported_policy(model) or resolve_model(model)
