"""What Raylign changes inside a vLLM worker: loading weights between two decode steps, drawing tokens, and what vLLM
computes that nobody reads.

In: calls by name (`collective_rpc`) from the engine (engine.py), in whichever process vLLM runs the model, which
imports this file before it loads one. Out: a model on new weights. Left out: requests and their results.
"""

from __future__ import annotations

import actors.engines.vllm.environment  # noqa: F401 - vLLM reads it when it is imported

# isort: split
from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.sample import sampler

from actors.engines.sampling import draw, uniforms
from actors.engines.vllm.adapter import add_by_matmul
from actors.models.numerics import settle_kernels
from actors.transports.buckets import views_of
from actors.transports.interface import DeviceBucket
from actors.types import WeightBucket

settle_kernels()
SEED, MADE = "raylign_seed", "raylign_made"


def no_ranks(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """In place of the sampled tokens' ranks [n], which vLLM counts in the log-probs x [n, V] and Raylign never reads: a
    kernel compiled at an engine's first token, three seconds late for a worker that joins a run."""
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


sampler.batched_count_greater_than = no_ranks


class WeightPort:
    """Mixed into every vLLM worker (`worker_extension_cls`); called by name through `collective_rpc`."""

    # The worker's own, named for the type checker; a class that is mixed in must not have them itself.
    model_runner: Any
    vllm_config: VllmConfig
    model_config: ModelConfig
    device: torch.device

    raylign_missing: set[str]
    """Parameters that the update has not brought yet."""

    def raylign_use_seeded_draw(self) -> None:
        """Draw tokens as actors.engines.sampling does. vLLM's own per-request generators draw a number per vocabulary
        entry and row, which on CPU halves the rate, and on CPU they fail when a long batch of prompts is cut into
        chunks."""
        runner = self.model_runner

        def forward(
            logits: torch.Tensor, _generators: Any, k: torch.Tensor | None, p: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            states = [runner.requests[request_id] for request_id in runner.input_batch.req_ids]
            given = [state.sampling_params.extra_args for state in states]
            made = [g[MADE] + len(s.output_token_ids) for g, s in zip(given, states, strict=True)]
            return draw(logits, uniforms([g[SEED] for g in given], made), k, p)

        runner.sampler.topk_topp_sampler.forward = forward

    def raylign_use_matmul_adapter(self) -> None:
        manager = self.model_runner.lora_manager._adapter_manager
        for wrapper in manager.punica_wrapper_mapping.values():
            wrapper.add_lora_linear = add_by_matmul

    def raylign_start_update(self) -> None:
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            # An update that was abandoned leaves layers half loaded, and vLLM would count their old pieces again.
            # Closing it first costs nothing otherwise: layers that wait for no weights are left alone.
            finalize_layerwise_reload(model, self.model_config)
            # Taken before the reload splits them: a head tied to the embedding counts once, with the embedding.
            self.raylign_missing = {name for name, _ in model.named_parameters()}
            initialize_layerwise_reload(model)

    def raylign_load_bucket(self, bucket: WeightBucket | DeviceBucket) -> None:
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config), torch.device(self.device):
            loaded = model.load_weights((name, t.to(self.device)) for name, t in views_of(bucket))
        self.raylign_missing -= loaded

    def raylign_finish_update(self) -> None:
        model = self.model_runner.get_model()
        if missing := self.raylign_missing:
            raise ValueError(f"the update lacks {len(missing)} parameters, such as {min(missing)}: publish them all")
        with set_current_vllm_config(self.vllm_config), torch.device(self.device):
            finalize_layerwise_reload(model, self.model_config)
            repack_tied_heads(model)


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Rebuild the packed kernel of every output head. A head tied to the embedding receives no weights of its own, so
    the reload leaves the copy that vLLM packed for the CPU on the old weights: no error, log-probs of noise."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
