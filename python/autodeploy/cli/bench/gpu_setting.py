"""What is measured on a GPU: the model, how it is opened, and the sizes of the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cases import prompt_ids

if TYPE_CHECKING:
    from autodeploy.llm import LLM, RequestOutput

GPU_PARTS = ("start", "latency", "throughput", "gap", "curve", "roofline")


@dataclass(frozen=True)
class GpuSetting:
    """Lengths in tokens. copy_bytes and product: of the device copy and of the square matrices that give the ceilings.

    requests: of the latency, after one that warms up. batch_sizes: of the curve.
    """

    artifact: str
    device: str = "cuda"
    dtype: str = "auto"
    load_format: str = "auto"
    dummy_seed: int = 0
    dummy_routing: str = "model"
    threads: int | None = None
    prompt_len: int = 1024
    new_tokens: int = 1024
    num_seqs: int = 64
    requests: int = 5
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    copy_bytes: int = 1 << 30
    product: int = 8192

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("prompt_len", "num_seqs", "requests", "copy_bytes", "product")}
        # Times between tokens need two of them.
        counts["new_tokens"] = self.new_tokens - 1
        counts |= {f"batch_sizes[{i}]": size for i, size in enumerate(self.batch_sizes)}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"[bench] {name}: expected a larger number, found {getattr(self, name, count)}")
        if not self.batch_sizes:
            raise ValueError("[bench] batch_sizes: expected at least one, found none")

    @property
    def max_seq_len(self) -> int:
        """Room for every measurement; the bound that recorded steps are made for."""
        return max(4 * self.prompt_len, self.prompt_len + self.new_tokens + 1)

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `LLM` that say where the model runs and where its weights come from."""
        return {
            "device": self.device, "dtype": self.dtype, "load_format": self.load_format,
            "dummy_seed": self.dummy_seed, "dummy_routing": self.dummy_routing, "threads": self.threads,
        }  # fmt: skip

    def open(self, num_seqs: int | None = None, **options: Any) -> LLM:
        """The engine, for num_seqs sequences at a time."""
        from autodeploy.llm import LLM

        limits = {"max_seq_len": self.max_seq_len, "max_num_seqs": num_seqs or self.num_seqs}
        return LLM(self.artifact, progress=False, **self.load_options(), **limits, **options)


def generate(llm: LLM, count: int, prompt_len: int, new_tokens: int, seed: int = 0) -> list[RequestOutput]:
    """Greedy answers of new_tokens tokens each to `count` prompts that differ, all together."""
    from autodeploy.llm import SamplingParams

    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    prompts = [prompt_ids(llm.vocab_size, prompt_len, 1000 * seed + i) for i in range(count)]
    return llm.generate(prompts, params, progress=False)
