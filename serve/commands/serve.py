"""`raylign serve RUN_OR_DIR`: the tuned policy behind an OpenAI-compatible server, until Ctrl-C.

In: a run directory or a Hugging Face directory. Out: a server, and one line with its address once it answers. Exit
codes as everywhere: 0 stopped by Ctrl-C, 1 the engine did not start, 2 the input is wrong.
"""

from __future__ import annotations

import signal
from typing import Annotated

import typer


def serve(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_DIR", help="A run directory, or any Hugging Face directory.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in; then set --api-key-env.")] = "127.0.0.1",
    replicas: Annotated[int, typer.Option(min=1, help="Engines that share the traffic.")] = 1,
    step: Annotated[int | None, typer.Option(help="Which policy/step-N; default the highest.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable with the key that clients must send.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs per replica; default 1 where there are GPUs.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Window in tokens; default the model's.")] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Larger request bodies are refused.")] = 4.0,
) -> None:
    """Serve a tuned policy: OpenAI's API, streaming and log-probs; every answer names the policy version."""
    from serve.policy import ServeInputError, find_policy
    from serve.session import ServeFailed, require_free_port, serving
    from serve.settings import ServeSettings, token_from

    try:
        policy = find_policy(target, step)
        require_free_port(host, port)
        settings = ServeSettings(
            replicas=replicas,
            gpus=_gpus() if gpus is None else gpus,
            dtype=dtype,
            max_model_len=max_model_len,
            max_body_bytes=int(max_body_mb * (1 << 20)),
            token_sha256=token_from(api_key_env),
        )
        typer.echo(f"starting {policy.model_id} ({policy.version}) from {policy.path}", err=True)
        with serving(policy, settings, host, port) as url:
            typer.echo(f"serving {policy.model_id} ({policy.version}) at {url}; Ctrl-C stops it")
            signal.pause()
    except ServeInputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except ServeFailed as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("stopped; no process is left", err=True)


def _gpus() -> int:
    import torch

    return 1 if torch.cuda.is_available() else 0
