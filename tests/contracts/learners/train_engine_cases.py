"""What runs inside the rank processes of test_train_engine: drives one engine of each kind and reports numbers as JSON.

In: rank, world size, {"folder", "cases": {kind: names}}. Out: {kind: {case: numbers}}; the test file holds the
expectations. Two models: `Line`, whose gradients are its inputs, so that every number can be worked out by hand; and a
tiny Llama with tied embeddings. Left out: asserting.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from learners.engines.deepspeed_engine import DeepSpeedEngine, construction_context
from learners.engines.interface import StepResult, TrainEngine
from learners.engines.settings import OptimizerSettings, ZeroSettings
from learners.engines.torch_engine import TorchEngine

CPU = torch.device("cpu")
VOCABULARY, ROWS, LENGTH = 96, 8, 12
SMOOTH = OptimizerSettings(lr=1e-2, eps=1e-2, weight_decay=0.1, max_grad_norm=0.5)
"""A large eps keeps AdamW from turning rounding noise in tiny gradients into whole steps: engines can be compared."""


class Offset(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.bias * x).sum()


class Line(torch.nn.Module):
    """Weights all 1. The gradient of `body.weight` is `body`, of `offset.bias` is `offset`, of `value_head.weight`
    is `head`; None leaves that part out of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(2, 1, bias=False)
        self.offset = Offset()
        self.value_head = torch.nn.Linear(2, 1, bias=False)
        for p in self.parameters():
            p.data.fill_(1.0)

    def forward(
        self, body: Sequence[float], offset: Sequence[float] = (0.0, 0.0), head: Sequence[float] | None = (0.0, 0.0)
    ) -> torch.Tensor:
        row = partial(torch.tensor, dtype=self.body.weight.dtype)
        out = self.body(row([body])).sum() + self.offset(row(offset))
        return out if head is None else out + self.value_head(row([head])).sum()


def llama(seed: int = 0, layers: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=160,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    )


def llama_loss(engine: TrainEngine, rows: Sequence[int]) -> torch.Tensor:
    """Cross-entropy summed over the rows, normalised by the tokens of all ROWS rows."""
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))[list(rows)]
    logits = engine.module(input_ids=ids).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    return loss / (ROWS * (LENGTH - 1))


def make(
    kind: str, module: torch.nn.Module, optimizer: OptimizerSettings, dtype: str = "float32", **more
) -> TrainEngine:
    """`kind` is "torch" or "zero-S"; "zero-S-offload" keeps the optimiser (stage 3: parameters too) on the CPU."""
    if kind == "torch":
        return TorchEngine(module, optimizer=optimizer, dtype=dtype, device=CPU, **more)
    return DeepSpeedEngine(module, zero=zero_settings(kind), optimizer=optimizer, dtype=dtype, device=CPU, **more)


def zero_settings(kind: str) -> ZeroSettings:
    stage = int(kind.split("-")[1])
    if not kind.endswith("offload"):
        return ZeroSettings(stage=stage)
    return ZeroSettings(stage=stage, offload_optimizer="cpu", offload_parameters="cpu" if stage == 3 else "none")


def weights(engine: TrainEngine) -> dict[str, list[float]]:
    return {n: t.float().flatten().tolist() for bucket in engine.full_parameters(1 << 20) for n, t in bucket}


def digest(engine: TrainEngine) -> str:
    h = hashlib.sha256()
    for bucket in engine.full_parameters(1 << 16):
        for name, tensor in bucket:
            h.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return h.hexdigest()


def flat(engine: TrainEngine) -> torch.Tensor:
    return torch.cat([t.double().flatten() for bucket in engine.full_parameters(1 << 16) for _, t in bucket])


def shown(result: StepResult) -> dict[str, float | bool]:
    return {"applied": result.applied, "grad_norm": result.grad_norm, "lr": result.lr}


def line_step(engine: TrainEngine, micros: Sequence[dict]) -> StepResult:
    """One step over this rank's micro-batches, each the keyword arguments of `Line.forward`."""
    for i, micro in enumerate(micros):
        engine.backward(engine.module(**micro), last=i == len(micros) - 1)
    return engine.step()


def llama_steps(engine: TrainEngine, micros: int, steps: int, forwards_between: bool = False) -> list[StepResult]:
    """`steps` steps over all ROWS rows, shared among ranks and cut into `micros` micro-batches a rank."""
    mine = list(range(ROWS))[engine.rank :: engine.world_size]
    results = []
    for _ in range(steps):
        for i in range(micros):
            engine.backward(llama_loss(engine, mine[i::micros]), last=i == micros - 1)
            if forwards_between:
                with torch.no_grad():
                    llama_loss(engine, [0])
        results.append(engine.step())
    return results


def sum_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """Two micro-batches a rank; over all of them the gradient of body.weight is (3, 4)."""
    engine = make(kind, Line(), OptimizerSettings(lr=1.0, eps=1.0, max_grad_norm=1.0))
    share = (
        [{"body": (1.0, 4.0)}, {"body": (2.0, 0.0)}]
        if world == 1
        else [
            [{"body": (1.0, 0.0)}, {"body": (2.0, 0.0)}],
            [{"body": (0.0, 5.0)}, {"body": (0.0, -1.0)}],
        ][rank]
    )
    result = shown(line_step(engine, share))
    return {**result, "weights": weights(engine)}


def unclipped_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    engine = make(kind, Line(), OptimizerSettings(lr=1.0, eps=1.0, max_grad_norm=0.0))
    result = shown(line_step(engine, [{"body": (3.0 / world, 4.0 / world)}]))
    return {**result, "weights": weights(engine)}


def float32_sum_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """In bfloat16 1 + 1/512 is 1: the sum 1 + 1/512 - 1 survives only where it is kept in float32."""
    engine = make(kind, Line(), OptimizerSettings(lr=1.0, max_grad_norm=0.0), "bfloat16")
    small = 1.0 / 512
    share = [1.0, small, -1.0] if world == 1 else [[1.0, -1.0], [small, 0.0]][rank]
    return shown(line_step(engine, [{"body": (x, 0.0)} for x in share]))


def groups_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    engine = make(kind, Line(), OptimizerSettings(lr=0.1, head_lr=0.01, weight_decay=0.5, max_grad_norm=0.0))
    share = {"body": (1.0, -1.0), "offset": (1.0, -1.0), "head": (1.0, -1.0)}
    line_step(engine, [share])
    return {"weights": weights(engine)}


def schedule_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    settings = OptimizerSettings(
        lr=0.1, freeze_steps=1, warmup_steps=2, schedule="linear", total_steps=7, min_lr_ratio=0.5, max_grad_norm=0.0
    )
    engine = make(kind, Line(), settings)
    seen = []
    for _ in range(8):
        result = line_step(engine, [{"body": (1.0, 1.0)}])
        seen.append({"lr": result.lr, "weight": weights(engine)["body.weight"][0]})
    return {"steps": seen}


def non_finite_case(kind: str, rank: int, world: int, folder: Path, dtype: str) -> dict:
    """Two good steps with two bad ones between (a NaN loss, then a finite loss with an infinite gradient, both on the
    last rank only), against the same two good steps alone."""
    out: dict = {}
    for with_bad in (False, True):
        engine = make(kind, Line(), OptimizerSettings(lr=0.1, max_grad_norm=0.0, warmup_steps=4), dtype)
        line_step(engine, [{"body": (1.0, 2.0)}])
        if with_bad:
            before = digest(engine)
            bad_rank = rank == world - 1
            nan = float("nan") if bad_rank else 1.0
            engine.backward(engine.module(body=(5.0, 5.0)), last=False)
            engine.backward(engine.module(body=(1.0, 1.0)) * nan, last=True)
            out["nan_loss"] = shown(engine.step())
            # Off the bad rank a plain loss; on it the root of 0, whose slope is infinite.
            value = engine.module(body=(0.0, 0.0), head=(1.0, 1.0))
            loss = (value - value.detach()).abs().sqrt() if bad_rank else value * 0.5
            out["bad_loss_is_finite"] = bool(torch.isfinite(loss))
            engine.backward(loss, last=True)
            out["infinite_gradient"] = shown(engine.step())
            out["untouched"] = digest(engine) == before
        last = line_step(engine, [{"body": (2.0, 1.0)}, {"body": (1.0, 1.0), "head": (1.0, 0.0)}])
        out["with_bad" if with_bad else "without_bad"] = {"digest": digest(engine), **shown(last)}
    return out


def unused_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """The head takes part in the first step only: in the second it has no gradient at all."""
    engine = make(kind, Line(), OptimizerSettings(lr=0.1, max_grad_norm=0.0))
    line_step(engine, [{"body": (1.0 / world, 0.0), "head": (2.0 / world, 2.0 / world)}])
    norm = line_step(engine, [{"body": (1.0 / world, 0.0), "head": None}]).grad_norm
    return {"grad_norm": norm, "weights": weights(engine)}


def twin_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """Largest difference of any weight from the torch twin's after two steps, for several ways to cut the batch."""
    twin = make("torch", llama(), SMOOTH)
    start = flat(twin)
    reference = llama_steps(twin, 1, 2)
    out = {"moved": (flat(twin) - start).abs().max().item(), "difference": {}, "norm_difference": {}}
    for micros in (1, 4):
        engine = make(kind, llama(), SMOOTH)
        results = llama_steps(engine, micros, 2, forwards_between=micros > 1)
        out["difference"][str(micros)] = (flat(engine) - flat(twin)).abs().max().item()
        out["norm_difference"][str(micros)] = abs(results[1].grad_norm - reference[1].grad_norm)
        engine.close()
    engine = make(kind, llama(), SMOOTH, gradient_checkpointing=True)
    engine.module.train()
    llama_steps(engine, 2, 2)
    out["difference"]["checkpointing"] = (flat(engine) - flat(twin)).abs().max().item()
    return out


def parameters_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """full_parameters against the module it came from, in bfloat16, in buckets of 70,000 bytes."""
    expected = {n: p.detach().to(torch.bfloat16) for n, p in llama().named_parameters()}
    engine = make(kind, llama(), SMOOTH, "bfloat16")
    buckets = [[(n, t.clone()) for n, t in bucket] for bucket in engine.full_parameters(70_000)]
    got = [item for bucket in buckets for item in bucket]
    return {
        "names": [n for n, _ in got],
        "expected_names": list(expected),
        "bit_equal": all(t.dtype == torch.bfloat16 and torch.equal(t, expected[n]) for n, t in got),
        "sizes": [len(bucket) for bucket in buckets],
    }


def resume_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """Two steps, save, two more; against a fresh engine that loads and takes two; and the used one that loads."""
    out = {}
    settings = OptimizerSettings(lr=1e-3, weight_decay=0.1, warmup_steps=6)
    for dtype in ("float32", "bfloat16"):
        place = folder / f"{kind}-{world}-{dtype}"
        place.mkdir(parents=True, exist_ok=True)
        first = make(kind, llama(), settings, dtype)
        llama_steps(first, 2, 2)
        first.save(place)
        at_save = digest(first)
        last = llama_steps(first, 2, 2)[-1]
        end = digest(first)
        fresh = make(kind, llama(seed=5), settings, dtype)
        fresh.load(place)
        loaded = digest(fresh)
        resumed = llama_steps(fresh, 2, 2)[-1]
        first.load(place)
        llama_steps(first, 2, 2)
        out[dtype] = {
            "loaded": loaded == at_save,
            "resumed": digest(fresh) == end and resumed == last,
            "reloaded": digest(first) == end,
            "moved": end != at_save,
            "files": sorted(p.name for p in place.iterdir()),
        }
    return out


def mismatch_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """What `load` says of a state of another model or dtype, of one that does not say how it was cut and is of another
    stage or world, and of a torn file."""
    place = folder / f"mismatch-{kind}-{world}"
    place.mkdir(parents=True, exist_ok=True)
    engine = make(kind, Line(), SMOOTH)
    line_step(engine, [{"body": (1.0, 1.0)}])
    engine.save(place)
    before = digest(engine)
    state = (place / "state.json").read_text()
    out = {
        "model": _said(make(kind, llama(), SMOOTH).load, place),
        "dtype": _said(make(kind, Line(), SMOOTH, "bfloat16").load, place),
    }
    for name, more in (("world_size", 7), ("zero_stage", 4)):
        older = json.loads(state)
        del older["shares"]
        older["facts"][name] += more
        dist.barrier()
        if rank == 0:
            (place / "state.json").write_text(json.dumps(older))
        dist.barrier()
        out[name] = _said(engine.load, place)
    dist.barrier()
    if rank == 0:
        (place / "state.json").write_text(state)
        file = sorted(place.glob("rank-*.safetensors"))[-1]
        file.write_bytes(file.read_bytes()[:-9])
    dist.barrier()
    out["torn"] = _said(engine.load, place)
    out["nothing"] = _said(engine.load, folder)
    out["untouched"] = digest(engine) == before
    return out


class Critic(torch.nn.Module):
    """A trunk read from disk and a head made beside it."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.value_head = torch.nn.Linear(VOCABULARY, 1)
        torch.nn.init.ones_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.value_head(self.trunk(input_ids=ids).logits).float()


def construction_case(kind: str, rank: int, world: int, folder: Path) -> dict:
    """A critic whose trunk is read from disk inside the construction context trains like one that was not."""
    path = folder / f"model-{kind}-{world}"
    if rank == 0:
        llama().save_pretrained(path)
    dist.barrier()
    with construction_context(zero_settings(kind), "float32"):
        built = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sharded = sum(p.numel() == 0 for p in built.parameters())
    engines = [make(kind, Critic(trunk), SMOOTH) for trunk in (built, llama())]
    starts = [digest(engine) for engine in engines]
    for engine in engines:
        engine.backward(engine.module(torch.arange(LENGTH)[None] + rank).square().mean(), last=True)
        engine.step()
    ends = [digest(engine) for engine in engines]
    return {
        "sharded": sharded,
        "moved": starts[0] != ends[0],
        "same_start": starts[0] == starts[1],
        "same_end": ends[0] == ends[1],
    }


def _said(call: Callable[[Path], None], place: Path) -> str:
    try:
        call(place)
    except ValueError as error:
        return str(error)
    return ""


CASES = {
    "sum": sum_case,
    "unclipped": unclipped_case,
    "float32_sum": float32_sum_case,
    "groups": groups_case,
    "schedule": schedule_case,
    "non_finite_float32": partial(non_finite_case, dtype="float32"),
    "non_finite_bfloat16": partial(non_finite_case, dtype="bfloat16"),
    "unused": unused_case,
    "twin": twin_case,
    "parameters": parameters_case,
    "resume": resume_case,
    "mismatch": mismatch_case,
    "construction": construction_case,
}


def run(rank: int, world: int, payload: dict) -> dict:
    """The named cases of each kind, in the same order on every rank."""
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed's bfloat16 stage 1 collects garbage at every construction, over all imported modules
    folder = Path(payload["folder"])
    return {
        kind: {name: CASES[name](kind, rank, world, folder) for name in names}
        for kind, names in payload["cases"].items()
    }
