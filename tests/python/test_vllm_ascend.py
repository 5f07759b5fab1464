"""What the vLLM plug-in does on Ascend NPUs, on doubles of torch, vLLM and vLLM Ascend: nothing ran on an NPU."""

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import rfork
from rfork.vllm.identity import Ranks

RFORK = "vllm_ascend.model_loader.rfork"


class Tensor:
    """What is used of torch's tensors."""

    dtype, device = "torch.bfloat16", "npu:0"

    def __init__(self, address, shape=(2, 3), dense=True):
        self.address, self.shape, self.dense = address, shape, dense

    def data_ptr(self):
        return self.address

    def numel(self):
        return self.shape[0] * self.shape[1]

    def element_size(self):
        return 2

    def is_contiguous(self):
        return self.dense

    def stride(self):
        return (2 * self.shape[1], 1)

    def permute(self, *_):
        return self


class Doubles:
    """The modules, which note what is called."""

    def __init__(self, monkeypatch, generation="C", **missing):
        self.monkeypatch, self.noted, self.tensors = monkeypatch, [], {"w": Tensor(4096), "v": Tensor(8192)}
        self.seed, self.npu_mode, self.not_adopting, self.not_serving = True, 1, None, None
        self.not_loading = rfork.LoadError("no seed")
        note, doubles = self.noted.append, self

        @contextlib.contextmanager
        def during(name, _model):
            note(f"{name} begins")
            yield
            note(f"{name} ends")

        model = SimpleNamespace(eval=lambda: model)
        npu = SimpleNamespace(synchronize=lambda: note("synchronize"), empty_cache=lambda: note("empty cache"))
        self.module("torch", device=lambda _: contextlib.nullcontext(), npu=npu, distributed=SimpleNamespace(get_rank=lambda: 5))
        self.module("torch_npu", get_npu_format=lambda tensor: 29)
        self.module("vllm")
        self.module("vllm.config", ModelConfig=object, VllmConfig=object)
        self.module("vllm.config.load", LoadConfig=object)
        self.module("vllm.logger", init_logger=lambda _: SimpleNamespace(info=self.log, warning=self.log))
        self.module("vllm.model_executor")
        self.module("vllm.model_executor.model_loader", get_model=lambda **_: (note("own loader"), model)[1])
        self.module(
            "vllm.model_executor.model_loader.utils",
            initialize_model=lambda **_: (note("initialize"), model)[1],
            process_weights_after_loading=lambda *_: note("process"),
        )
        self.module("vllm.utils")
        self.module("vllm.utils.torch_utils", set_default_torch_dtype=lambda _: contextlib.nullcontext())
        self.module("vllm_ascend")
        self.module("vllm_ascend.utils", is_310p=lambda: False)
        self.module("vllm_ascend.ascend_config", get_ascend_config=lambda: SimpleNamespace(weight_nz_mode=self.npu_mode))
        self.module("vllm_ascend.model_loader")
        self.module(RFORK)
        collect = lambda _model, processed: (note(f"collect {processed}"), list(doubles.tensors.items()))[1]
        if generation == "A":
            self.module(f"{RFORK}.transfer_backend", _iter_transferable_tensors=collect)
        else:
            digest = {"build_structural_digest": lambda tensors: "+".join(name for name, _ in tensors)}
            digest = digest if generation == "C" else {}
            self.module(f"{RFORK}.tensor_layout", collect_transferable_tensors=collect, **digest)
            self.module(
                f"{RFORK}.identity",
                build_compatibility_fingerprint=lambda _vllm, _model, **names: f"of {names}",
                _resolve_sharded_dp_rank=lambda _: 7,
            )
        self.module(
            f"{RFORK}.rfork_loader",
            _rfork_pre_transfer_weight_processing=lambda model: during("preparing", model),
            _rfork_skip_unquantized_moe_post_load_processing=lambda model: during("finishing", model),
            _refresh_rfork_flatquant_state=lambda _: note("refresh"),
        )

        class Session:
            def __init__(self, settings, *, identity, global_rank, engine, shared):
                # The planner is told the tensor-parallel rank, which is in the identity.
                doubles.identity, doubles.shared = identity, shared
                assert (global_rank, engine) == (5, "yuanrong")

            def load(self, tensors):
                doubles.loaded = tensors
                note("load")
                if not doubles.seed:
                    raise doubles.not_loading
                return SimpleNamespace(total_bytes=1, seed="s", seconds=1.0)

            def adopt(self, tensors):
                note("adopt")
                if doubles.not_adopting:
                    raise doubles.not_adopting

            def serve(self):
                note("serve")
                if doubles.not_serving:
                    raise doubles.not_serving
                return SimpleNamespace(identity="i")

            def close(self):
                note("close")

        monkeypatch.setattr(rfork, "Session", Session)
        monkeypatch.delitem(sys.modules, "rfork.vllm.ascend_load", raising=False)

    def module(self, name, **attributes):
        module = ModuleType(name)
        vars(module).update(attributes)
        self.monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            self.monkeypatch.setattr(sys.modules[parent], child, module, raising=False)

    def log(self, text, *values):
        is_told = "storage" in text or "nothing to fork" in text
        self.noted.append(text % values if is_told else "log")

    def load(self, quantization=None, draft=False):
        from rfork.vllm.ascend import Ascend
        from rfork.vllm.ascend_load import AscendLoad

        model_config = SimpleNamespace(
            quantization=quantization, dtype="bfloat16", runner_type="draft" if draft else "generate"
        )
        parallel = SimpleNamespace(node_rank=3)
        vllm_config = SimpleNamespace(
            device_config=SimpleNamespace(device="npu"),
            parallel_config=parallel,
            kv_transfer_config=SimpleNamespace(kv_role="kv_consumer"),
        )
        load_config = SimpleNamespace(device=None, load_format="rfork", model_loader_extra_config={"x": 1})
        settings = {"model_url": "m", "model_deploy_strategy_name": "s"}
        load = AscendLoad(Ascend(), settings, load_config, vllm_config, model_config, Ranks(tp=1, pp=2, ep=None))
        assert load.run("") is not None
        return [noted for noted in self.noted if noted != "log"]


def test_quantised_weights_are_forked_in_the_layout_that_vllm_ascend_makes(monkeypatch):
    assert Doubles(monkeypatch).load(quantization="ascend") == [
        *("initialize", "preparing begins", "process", "preparing ends", "synchronize"),
        *("collect True", "load", "refresh", "serve"),
    ]


def test_other_weights_are_transformed_after_the_fork_and_served_as_what_they_are_then(monkeypatch):
    assert Doubles(monkeypatch).load() == [
        *("initialize", "synchronize", "collect False", "load", "close"),
        *("finishing begins", "process", "finishing ends"),
        *("synchronize", "collect False", "adopt", "serve"),
    ]


def test_all_weights_in_the_npu_s_layout_are_forked_like_quantised_ones(monkeypatch):
    doubles = Doubles(monkeypatch)
    doubles.npu_mode = 2
    assert "preparing begins" in doubles.load()


def test_without_a_seed_the_own_loader_loads_into_another_model_and_that_is_served(monkeypatch):
    doubles = Doubles(monkeypatch)
    doubles.seed = False
    assert doubles.load(quantization="ascend")[5:] == [
        *("collect True", "load", "close", "rfork: loading from storage: no seed", "empty cache"),
        *("own loader", "synchronize", "collect True", "adopt", "serve"),
    ]


def test_tensors_that_others_may_still_read_are_kept_and_other_ones_loaded(monkeypatch):
    doubles = Doubles(monkeypatch)
    doubles.seed, doubles.not_loading = False, rfork.TensorsInUseError("peers read them")
    assert doubles.load(quantization="ascend")[5:] == [
        *("collect True", "load", "close", "rfork: loading from storage: peers read them", "empty cache"),
        *("own loader", "synchronize", "collect True", "adopt", "serve"),
    ]
    assert sys.modules["rfork.vllm.ascend_load"]._kept == [doubles.tensors]


def test_keys_are_those_of_the_installed_version_s_own_workers(monkeypatch):
    ranks = {"tp_rank": 1, "pp_rank": 2, "ep_rank": None, "draft": False}
    names = {"model_url": "m", "model_deploy_strategy_name": "s"}
    fingerprint = {"compatibility_fingerprint": f"of {names}"}
    for generation, more in {
        "A": {"node_rank": 3, "kv_role": "kv_consumer"},
        "B": fingerprint,
        "C": fingerprint | {"structural_digest": "w+v", "sharded_dp_rank": 7},
    }.items():
        with monkeypatch.context() as patch:
            doubles = Doubles(patch, generation)
            doubles.load(quantization="ascend")
            assert doubles.identity == ranks | more, generation
            # With the NPU's own formats.
            assert doubles.loaded["w"] == rfork.Tensor(4096, 6, 2, (2, 3), "bfloat16", "npu:0", 29)


def test_a_draft_model_leaves_its_target_s_tensors_to_it(monkeypatch):
    doubles = Doubles(monkeypatch)
    doubles.load(quantization="ascend")
    doubles.tensors = {"shared.w": Tensor(4096), "own": Tensor(12288)}
    doubles.load(quantization="ascend", draft=True)
    assert (doubles.shared, list(doubles.loaded)) == (["shared.w"], ["own"])


@pytest.mark.parametrize(
    ("error", "is_closed"), [(rfork.UnreachableError("no way there"), False), (rfork.ServeError("no port"), True)]
)
def test_a_target_that_does_not_serve_has_its_tensors_all_the_same(monkeypatch, error, is_closed):
    doubles = Doubles(monkeypatch)
    doubles.not_serving = error
    # Who cannot be reached goes on trying.
    assert ("close" in doubles.load(quantization="ascend")) == is_closed
    doubles.noted.clear()
    assert doubles.load(quantization="ascend", draft=True)[-1].endswith("nothing to fork")


@pytest.mark.parametrize("seed", [True, False])
def test_a_target_that_the_engine_does_not_take_is_not_transformed_again_by_its_draft(monkeypatch, seed):
    doubles = Doubles(monkeypatch)
    doubles.seed, doubles.not_adopting = seed, rfork.LoadError("no memory to register")
    assert doubles.load()[-2:] == ["close", "collect False"]
    doubles.noted.clear()
    noted = doubles.load(draft=True)
    assert noted[-1].endswith("nothing to fork") and "process" not in noted


@pytest.mark.parametrize("quantization", [None, "ascend"])
def test_a_draft_model_that_shares_all_tensors_asks_no_planner_and_is_not_transformed(monkeypatch, quantization):
    doubles = Doubles(monkeypatch)
    doubles.load(quantization=quantization)
    doubles.noted.clear()
    # The whole of one, and a part of another.
    doubles.tensors = {"embed": Tensor(4096), "head": Tensor(8192 + 4, (1, 3))}
    processed = quantization is not None
    noted = doubles.load(quantization=quantization, draft=True)
    assert noted == ["initialize", f"collect {processed}", "rfork: all tensors are the target model's: nothing to fork"]
    # What goes on beside the target's memory is the draft's own.
    doubles.noted.clear()
    doubles.tensors = {"embed": Tensor(4096), "head": Tensor(8192 + 8, (1, 3))}
    assert "load" in doubles.load(quantization=quantization, draft=True)
    assert doubles.shared == ["embed"]
    # A model that is no draft is loaded, wherever its memory is.
    doubles.noted.clear()
    assert "load" in doubles.load(quantization=quantization)


def test_tensors_with_gaps_are_loaded_from_storage(monkeypatch):
    doubles = Doubles(monkeypatch)
    doubles.tensors["w"].dense = False
    noted = doubles.load()
    assert "load" not in noted and "own loader" in noted
    assert any("tensor 'w'" in line for line in noted)


def test_a_version_that_is_not_known_is_said(monkeypatch):
    from rfork.vllm.ascend import Ascend

    for name in (RFORK, f"{RFORK}.tensor_layout", f"{RFORK}.transfer_backend"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="not known"):
        Ascend()
