"""From a transformers model to a `ModelIR`: hooks by shared names, export on fake parameters, clean-up.

`capture.capture(config)` is the whole of it. Hooks must be in place before transformers' modelling modules are imported
(`hooks.install()`), so the compiler runs in a process of its own.
"""
