"""autodeploy: an unmodified Hugging Face causal LM in, an artifact and a fast C++ runtime out."""
