"""Sizes of the model of modeling_own_kernel.py."""

from transformers import PreTrainedConfig


class OwnKernelConfig(PreTrainedConfig):
    model_type = "example_own_kernel"

    def __init__(
        self,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_heads=4,
        max_position_embeddings=256,
        gate_limit=1.5,
        norm_eps=1e-5,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.max_position_embeddings = max_position_embeddings
        self.gate_limit = gate_limit
        self.norm_eps = norm_eps
        super().__init__(**kwargs)
