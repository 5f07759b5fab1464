"""What the vLLM plug-in decides, on doubles of vLLM's objects; `tests/vllm/run` tries it in vLLM itself."""

import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
import rfork
from rfork.vllm import LOAD_FORMATS, bypass, register
from rfork.vllm.identity import Ranks, fingerprint, identity, is_draft, structural_digest
from rfork.vllm.registries import Registries
from rfork.vllm.settings import split
from rfork.vllm.tensors import SharedMemory, collect, distinct


def config(**changes):
    """vLLM's configuration, and the model's; `parallel__x=…` changes a part."""
    parts = {
        "parallel": {
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "enable_expert_parallel": False,
            "enable_eplb": False,
            "eplb_config": SimpleNamespace(num_redundant_experts=0),
        },
        "model": {
            "dtype": "torch.bfloat16",
            "quantization": None,
            "revision": None,
            "enable_sleep_mode": False,
            "hf": {"hidden_size": 64, "_name_or_path": "/models/a"},
        },
        "vllm": {"additional_config": {}},
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        parts[part][field] = value
    hf = parts["model"].pop("hf")
    model = SimpleNamespace(**parts["model"], hf_config=SimpleNamespace(to_dict=lambda: hf))
    return SimpleNamespace(parallel_config=SimpleNamespace(**parts["parallel"]), **parts["vllm"]), model


class Tensor:
    """What is used of torch's tensors."""

    def __init__(self, address=4096, shape=(4,), strides=None, dtype="torch.float32", is_meta=False) -> None:
        self.address, self.shape, self.dtype, self.is_meta, self.device = address, shape, dtype, is_meta, "cpu"
        steps = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
        self.strides = strides or tuple(reversed(list(steps)))

    def detach(self):
        return self

    def numel(self):
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count

    def element_size(self):
        return 4

    def data_ptr(self):
        return self.address

    def stride(self):
        return self.strides

    def is_contiguous(self):
        return self.strides == Tensor(shape=self.shape).strides

    def permute(self, *order):
        return Tensor(self.address, tuple(self.shape[at] for at in order), tuple(self.strides[at] for at in order))


def model(parameters=(), buffers=(), **attributes):
    return SimpleNamespace(
        named_parameters=lambda: list(dict(parameters).items()),
        named_buffers=lambda: list(dict(buffers).items()),
        parameters=lambda: list(dict(parameters).values()),
        **attributes,
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"parallel__enable_eplb": True}, "EPLB"),
        ({"vllm__additional_config": {"eplb_config": {"dynamic_eplb": True}}}, "EPLB"),
        ({"vllm__additional_config": {"eplb_config": {"expert_map_record_path": "/m"}}}, "EPLB"),
        ({"vllm__additional_config": {"eplb_config": {}}}, None),
        ({"vllm__additional_config": {"eplb_config": {"expert_map_path": "/m"}}}, "expert_map_path"),
        ({"model__enable_sleep_mode": True}, "sleep mode"),
        ({"vllm__model_config": SimpleNamespace(enable_sleep_mode=True)}, "sleep mode"),
        ({"vllm__model_config": SimpleNamespace(enable_sleep_mode=False)}, None),
        ({"vllm__weight_transfer_config": SimpleNamespace(backend="nccl")}, "weight_transfer_config"),
        ({"vllm__weight_transfer_config": None}, None),
        ({"vllm__cache_config": SimpleNamespace(cpu_offload_gb=4)}, "CPU offload"),
        ({"vllm__cache_config": SimpleNamespace(cpu_offload_gb=0)}, None),
        ({"vllm__offload_config": SimpleNamespace(uva=SimpleNamespace(cpu_offload_gb=1.0))}, "CPU offload"),
        ({"vllm__offload_config": SimpleNamespace(prefetch=SimpleNamespace(offload_group_size=8))}, "CPU offload"),
        ({"model__quantization": "gguf"}, "gguf"),
        ({"model__quantization": "fp8"}, None),
    ],
)
def test_what_speaks_against_a_fork_is_told(changes, text):
    why = bypass.reason(*config(**changes))
    assert why is None if text is None else text in why


def test_models_tell_more():
    noting = model({"w": Tensor()}, has_own_lm_head=False)
    assert bypass.reason_in_model(noting, draft=False) is None
    assert "has_own_lm_head" in bypass.reason_in_model(noting, draft=True)
    assert bypass.reason_in_model(model({"w": Tensor()}), draft=True) is None
    assert "quantised while" in bypass.reason_in_model(model({"w": Tensor(is_meta=True)}), draft=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel__tensor_parallel_size": 4},
        {"parallel__pipeline_parallel_size": 2},
        {"parallel__enable_expert_parallel": True},
        {"parallel__eplb_config": SimpleNamespace(num_redundant_experts=2)},
        {"model__dtype": "torch.float16"},
        {"model__quantization": "fp8"},
        {"model__revision": "main"},
        {"model__hf": {"hidden_size": 128}},
    ],
)
def test_what_changes_the_bytes_changes_the_fingerprint(changes):
    assert fingerprint(*config(**changes), "1") != fingerprint(*config(), "1")


def test_what_does_not_change_the_bytes_does_not_change_the_fingerprint():
    usual = fingerprint(*config(), "1")
    assert fingerprint(*config(model__hf={"hidden_size": 64, "_name_or_path": "/elsewhere"}), "1") == usual
    assert fingerprint(*config(parallel__data_parallel_size=8), "1") == usual, "dense weights are the same in each"
    assert fingerprint(*config(), "2") != usual, "versions of vLLM fuse and shard in other ways"
    experts = {"parallel__enable_expert_parallel": True}
    spread = fingerprint(*config(**experts, parallel__data_parallel_size=8), "1")
    assert spread != fingerprint(*config(**experts), "1"), "experts are spread over all"


def test_ranks_draft_and_structure_take_part():
    tensors = {"w": Tensor()}
    parts = identity(*config(), Ranks(tp=1, pp=2, ep=3), tensors, "1")
    assert (parts["tp_rank"], parts["pp_rank"], parts["ep_rank"], parts["draft"]) == (1, 2, 3, False)
    usual = structural_digest(tensors.items())
    assert parts["structural_digest"] == usual
    for other in ({"v": Tensor()}, {"w": Tensor(shape=(2, 2))}, {"w": Tensor(dtype="torch.int8")}):
        assert structural_digest(other.items()) != usual
    assert structural_digest([("b", Tensor()), ("a", Tensor())]) == structural_digest([("a", Tensor()), ("b", Tensor())])


def test_draft_models_are_known():
    assert is_draft(SimpleNamespace(runner_type="draft"))
    assert is_draft(SimpleNamespace(hf_config=SimpleNamespace(model_type="deepseek_mtp")))
    assert is_draft(SimpleNamespace(hf_text_config=SimpleNamespace(architectures=["OpenPanguMTPModel"])))
    assert not is_draft(SimpleNamespace(hf_config=SimpleNamespace(model_type="llama", architectures=["LlamaForCausalLM"])))


def test_each_memory_is_collected_once():
    tied = Tensor(4096)
    parameters = {"embed": tied, "head": tied, "empty": Tensor(shape=(0, 3)), "nowhere": Tensor(is_meta=True)}
    assert list(collect(model(parameters, {"cache": Tensor(8192)}))) == ["embed", "cache"]


def test_what_a_worker_only_computes_with_is_left_out():
    buffers = {"topk_indices_buffer": Tensor(8192), "layers.0.indexer.topk_indices_buffer": Tensor(12288)}
    buffers["layers.0.my_topk_indices_buffer"] = Tensor(16384)
    assert list(collect(model({"w": Tensor()}, buffers))) == ["w", "layers.0.my_topk_indices_buffer"]


def test_tensors_with_gaps_are_refused():
    config = {"model_url": "m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": "http://127.0.0.1:9"}
    gapped = collect(model({"w": Tensor(shape=(2, 3), strides=(4, 1))}))
    with rfork.Session(config, identity={}) as session, pytest.raises(rfork.TensorError, match="'w'"):
        session.load(gapped)


def test_turned_tensors_are_collected_as_they_lie_in_memory():
    collected = collect(model({"w": Tensor(shape=(2, 3), strides=(1, 2))}))
    assert (collected["w"].shape, collected["w"].is_contiguous()) == ((3, 2), True)


def test_memory_that_is_shared_in_part_is_refused():
    spans = {"a": ("cpu", 0, 8), "inner": ("cpu", 2, 4), "other": ("npu:0", 4, 12), "b": ("cpu", 8, 16)}
    assert distinct(spans) == ["a", "other", "b"]
    with pytest.raises(SharedMemory, match="'a' and 'c'"):
        distinct(spans | {"c": ("cpu", 4, 12)})


def test_vllm_s_own_loader_gets_its_settings():
    extra = {"model_url": "m", "num_threads": 4, "rfork_zone": "z"}
    assert split(extra) == ({"model_url": "m", "rfork_zone": "z"}, {"num_threads": 4})
    assert split(None) == ({}, {})


def test_registries_are_restored(monkeypatch):
    rope = ModuleType("vllm.model_executor.layers.rotary_embedding")
    rope._ROPE_DICT = {"old": 1}
    for at, name in enumerate(parents := ["vllm", "vllm.model_executor", "vllm.model_executor.layers", rope.__name__]):
        monkeypatch.setitem(sys.modules, name, rope if at == len(parents) - 1 else ModuleType(name))
    compilation = SimpleNamespace(static_forward_context={"a": 1}, static_all_moe_layers=["x"])
    registries = Registries(SimpleNamespace(compilation_config=compilation))
    compilation.static_forward_context["b"] = 2
    compilation.static_all_moe_layers.append("y")
    rope._ROPE_DICT["new"] = 2
    registries.restore()
    assert (compilation.static_forward_context, compilation.static_all_moe_layers) == ({"a": 1}, ["x"])
    assert rope._ROPE_DICT == {"old": 1}


@pytest.mark.parametrize("taken", [(), ("rfork",)])
def test_a_name_that_somebody_has_is_left_to_them(monkeypatch, taken):
    class Ours:
        pass

    vllm, executor = ModuleType("vllm"), ModuleType("vllm.model_executor")
    loaders = executor.model_loader = ModuleType("vllm.model_executor.model_loader")
    known = loaders._LOAD_FORMAT_TO_MODEL_LOADER = dict.fromkeys(taken, object)
    loaders.register_model_loader = lambda name: lambda loader: known.setdefault(name, loader)
    ours = ModuleType("rfork.vllm.loader")
    ours.RForkModelLoader = Ours
    for module in (vllm, executor, loaders, ours):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    register()
    register()
    assert known == {name: object if name in taken else Ours for name in LOAD_FORMATS}
