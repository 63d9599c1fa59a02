"""Sizes of the dense transformer of modeling_dense.py."""

from transformers import PreTrainedConfig


class DenseConfig(PreTrainedConfig):
    """hidden_size is num_heads * head_dim; key heads are shared by num_heads / num_key_heads query heads."""

    model_type = "example_dense"

    def __init__(
        self,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_heads=4,
        num_key_heads=2,
        max_position_embeddings=512,
        rope_base=10000.0,
        norm_eps=1e-6,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.num_key_heads = num_key_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_base = rope_base
        self.norm_eps = norm_eps
        super().__init__(**kwargs)
