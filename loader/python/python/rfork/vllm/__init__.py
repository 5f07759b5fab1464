"""vLLM's load format ``rfork``: weights from a running worker instead of from storage.

vLLM finds :func:`register` by itself (entry point group ``vllm.general_plugins``), so installing the package is all
that it takes; ``docs/vllm.md`` of the project says how to use it. Importing this package imports neither vLLM nor
torch.

``identity``, ``bypass``, ``tensors`` and ``settings`` decide, on vLLM's objects alone; ``loader`` acts.
"""

LOAD_FORMATS = ("rfork", "rfork_rs")
"""The names of the load format. vLLM Ascend has one named ``rfork`` of its own, which is left to it."""


def register() -> None:
    """Registers the load format; in each of vLLM's processes, any number of times."""
    from vllm.model_executor import model_loader

    from .loader import RForkModelLoader

    known = model_loader._LOAD_FORMAT_TO_MODEL_LOADER
    for load_format in LOAD_FORMATS:
        # Somebody else's, or ours from before.
        if load_format not in known:
            model_loader.register_model_loader(load_format)(RForkModelLoader)
