"""What is a tensor that can be loaded into, and what is not."""

import array
import ctypes
import time

import numpy
import pytest
import rfork


def load(planner, tensors, **arguments):
    with rfork.Session(planner.config(), identity={}) as session:
        return session.load(tensors, **arguments)


class Torch:
    """What torch's tensors have."""

    def __init__(self, of: numpy.ndarray, dtype: str, device: str = "cpu") -> None:
        self._of, self.dtype, self.device, self.shape = of, f"torch.{dtype}", device, of.shape

    def data_ptr(self) -> int:
        return self._of.ctypes.data

    def numel(self) -> int:
        return self._of.size

    def element_size(self) -> int:
        return self._of.itemsize

    def is_contiguous(self) -> bool:
        return self._of.flags.c_contiguous


class DLPackOnly:
    """What a library without the buffer protocol has."""

    def __init__(self, of: numpy.ndarray) -> None:
        self._of = of

    def __dlpack__(self):
        return self._of.__dlpack__()


class DLPackVersioned(DLPackOnly):
    """What one of today has."""

    def __dlpack__(self, *, max_version):
        return self._of.__dlpack__(max_version=max_version)


def read_only() -> numpy.ndarray:
    array = numpy.zeros(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("kind", ["buffer", "array", "ctypes", "bytearray", "torch", "dlpack", "dlpack1", "address"])
def test_each_way_to_pass_a_tensor_leads_to_its_memory(planner, kind):
    buffer = {
        "array": lambda: array.array("f", [0] * 5),
        "ctypes": lambda: (ctypes.c_float * 5)(),
        "bytearray": lambda: bytearray(20),
    }.get(kind, lambda: numpy.zeros(5, numpy.float32))()
    view = numpy.frombuffer(buffer, numpy.float32)
    passed = {
        "torch": lambda: Torch(view, "float32"),
        "dlpack": lambda: DLPackOnly(view),
        "dlpack1": lambda: DLPackVersioned(view),
        "address": lambda: rfork.Tensor(view.ctypes.data, 5, 4, (5,), "float32"),
    }.get(kind, lambda: buffer)()
    source = numpy.arange(5, dtype=numpy.float32)
    if kind == "bytearray":
        source = source.view(numpy.uint8)
    with rfork.Session(planner.config(), identity={}) as seed:
        seed.load({"w": source}, fallback=lambda: None)
        seed.serve()
        assert load(planner, {"w": passed}).forked
    assert list(view) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (lambda: {"w": numpy.zeros((4, 4))[:, 1:]}, "tensor 'w': its elements do not lie one after the other"),
        (lambda: {"w": Torch(numpy.zeros((4, 4)).T[1:], "float64")}, "tensor 'w': its elements do not lie"),
        (lambda: {"w": DLPackOnly(numpy.zeros((4, 4)).T)}, "tensor 'w': its elements do not lie"),
        (lambda: {"w": b"constant"}, "tensor 'w': it is read-only"),
        (lambda: {"w": DLPackVersioned(read_only())}, "tensor 'w': it is read-only"),
        (lambda: {"w": numpy.array(["text"])}, "tensor 'w': its elements ('4w') are no numbers"),
        (lambda: {"w": numpy.zeros(3, ">f4")}, "are no numbers of this machine"),
        (lambda: {"w": 3}, "tensor 'w': int has neither torch's methods nor the buffer protocol nor DLPack"),
        (lambda: {"w": (1, 2)}, "tensor 'w': expected (address, count, element_size, shape, dtype, device)"),
        (lambda: {"w": rfork.Tensor(4096, 5, 4, (6,), "float32")}, "tensor 'w': shape [6] does not hold 5 elements"),
        (lambda: {"w": rfork.Tensor(0, 5, 4, (5,), "float32")}, "'w': tensor 0 cannot be at address 0x0"),
        (lambda: {"w": Torch(numpy.zeros(3), "float64", "meta")}, "tensor 'w' is on meta: no engine reaches it"),
        (lambda: {}, "the manifest lists no tensor"),
        (lambda: {"w": numpy.zeros(0)}, "the manifest lists no tensor"),
    ],
)
def test_what_cannot_be_loaded_into_is_refused_by_name(planner, tensors, text):
    with pytest.raises(rfork.RForkError) as raised:
        load(planner, tensors(), fallback=lambda: None)
    assert text in str(raised.value)


def test_tensors_that_share_memory_are_both_named(planner):
    whole = numpy.zeros(10)
    with pytest.raises(rfork.TensorError, match="'a' and 'b' share memory"):
        load(planner, {"a": whole, "b": whole[9:]}, fallback=lambda: None)


def test_what_an_object_raises_is_the_cause(planner):
    class Bad(Torch):
        def data_ptr(self) -> int:
            raise OverflowError("gone")

    with pytest.raises(rfork.TensorError, match="tensor 'w': .*gone") as raised:
        load(planner, {"w": Bad(numpy.zeros(3), "float64")})
    assert isinstance(raised.value.__cause__, OverflowError)


def test_tensors_without_elements_are_left_out(planner):
    tensors = {"w": numpy.zeros(3), "empty": numpy.zeros((0, 7))}
    assert load(planner, tensors, fallback=lambda: None).total_bytes == 24


def test_memory_is_kept_while_a_session_serves_it_and_then_given_back(planner):
    buffer = bytearray(100)
    with rfork.Session(planner.config(), identity={}) as session:
        session.load({"w": buffer}, fallback=lambda: None)
        with pytest.raises(BufferError):
            buffer.append(1)
    # The last of rfork's threads that had it lets it go soon after.
    deadline = time.monotonic() + 60
    while True:
        try:
            buffer.append(1)
            return
        except BufferError:
            assert time.monotonic() < deadline, "the buffer is still exported"
            time.sleep(0.001)
