"""conformance: every causal language model that transformers knows, tiny and random, compiled and compared."""
