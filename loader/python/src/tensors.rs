//! Python's tensors as ranges of memory.
//!
//! A tensor may be `(address, count, element size, shape, dtype, device)`, with a format behind it or without, an
//! object with torch's methods, an object with the buffer protocol, or one with `DLPack`'s. They are tried in this order;
//! the first that an object has is taken, because each may say more than the next (numpy has no `bfloat16`).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyCapsule, PyCapsuleMethods, PyMemoryView, PyTuple};
use rfork_loader::engine::device::Device;
use rfork_loader::engine::memory::{CallersMemory, MemoryError, WeightMemory};
use rfork_loader::tensors::{dtype_of_buffer, dtype_of_dlpack, is_contiguous};
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};

use crate::errors::{TensorError, tensor};

/// Devices of `DLPack` whose memory the processor reads: the host's, and what GPUs pin or manage.
const DLPACK_HOST: [i32; 4] = [1, 3, 11, 13];

/// Tensors of the caller's, and what keeps their memory.
pub(crate) struct Tensors {
    /// In the order of their names; those without elements are left out.
    pub(crate) manifest: Manifest,
    /// The devices that they are on, each with the name of a tensor there.
    pub(crate) devices: BTreeMap<String, String>,
    /// The allocations of those on devices, as far as the tensors know them.
    storages: BTreeSet<(u64, u64)>,
    keepers: Vec<Keeper>,
}

/// What keeps a tensor's memory where it is: the object, or what it exported.
type Keeper = Box<dyn Any + Send + Sync>;

/// One tensor before it is checked.
struct Described {
    address: u64,
    count: u64,
    element_bytes: u64,
    shape: Vec<u64>,
    dtype: String,
    /// As torch names it: `cpu`, `npu:0`.
    device: String,
    /// How its elements lie in an NPU's memory, as AscendCL numbers it.
    format: i64,
    /// The allocation that it lies in, `(address, bytes)`.
    storage: Option<(u64, u64)>,
    keeper: Keeper,
}

impl Tensors {
    /// Describes each tensor.
    ///
    /// # Errors
    /// `TensorError`, with the tensor's name.
    pub(crate) fn of(tensors: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Self> {
        let mut entries = Vec::with_capacity(tensors.len());
        let mut keepers = Vec::with_capacity(tensors.len());
        let (mut devices, mut storages) = (BTreeMap::new(), BTreeSet::new());
        for (name, object) in tensors {
            let described = describe(&object).map_err(|reason| reason.of(&name, object.py()))?;
            keepers.push(described.keeper);
            if described.count > 0 {
                devices.entry(described.device).or_insert_with(|| name.clone());
                storages.extend(described.storage);
                entries.push(Tensor {
                    name,
                    address: described.address,
                    count: described.count,
                    element_bytes: described.element_bytes,
                    shape: Some(described.shape),
                    dtype: Some(described.dtype),
                    format: Some(described.format),
                });
            }
        }
        let manifest = Manifest::new(entries).map_err(|error| tensor(error.to_string()))?;
        Ok(Self { manifest, devices, storages, keepers })
    }

    /// Their memory, on that device or the host, for the loader. It keeps the tensors until nobody reads or writes them.
    ///
    /// # Errors
    /// `TensorError` for tensors that share memory.
    pub(crate) fn into_memory(
        self,
        py: Python<'_>,
        device: Option<Device>,
    ) -> PyResult<(Manifest, Arc<WeightMemory>)> {
        let ranges: Vec<(u64, u64)> =
            self.manifest.tensors().iter().map(|tensor| (tensor.address, tensor.bytes())).collect();
        let allocations = match &device {
            None => Vec::new(),
            Some(_) => segments(py).unwrap_or_else(|| self.storages.into_iter().collect()),
        };
        let callers = CallersMemory { owner: Arc::new(self.keepers), device, allocations };
        // SAFETY: each range is that of an object which is kept by the owner: the buffer protocol and DLPack promise
        // that it stays; torch's tensors keep their storage unless somebody resizes it. Explicit addresses are the
        // caller's promise, as is that nobody else writes there during a load: both are documented where people
        // call.
        let memory = unsafe { WeightMemory::of_caller(&ranges, callers) };
        let memory = memory.map_err(|error| {
            let name = |at: usize| self.manifest.tensors().get(at).map_or("?", |tensor| tensor.name.as_str());
            TensorError::new_err(match error {
                MemoryError::Overlap { first, second } => format!(
                    "'{}' and '{}' share memory: pass one of them, or give each its own",
                    name(first),
                    name(second)
                ),
                MemoryError::Range { tensor, .. } => format!("'{}': {error}", name(tensor)),
                other => other.to_string(),
            })
        })?;
        Ok((self.manifest, memory))
    }
}

/// Why an object is no tensor that can be loaded into.
enum Reason {
    Text(String),
    Raised(PyErr),
}

impl Reason {
    fn of(self, name: &str, py: Python<'_>) -> PyErr {
        match self {
            Self::Text(text) => TensorError::new_err(format!("tensor '{name}': {text}")),
            Self::Raised(cause) => {
                let error = TensorError::new_err(format!("tensor '{name}': {cause}"));
                error.set_cause(py, Some(cause));
                error
            }
        }
    }
}

impl From<PyErr> for Reason {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

const NOT_CONTIGUOUS: &str = "its elements do not lie one after the other in memory; pass a contiguous copy";

fn describe(object: &Bound<'_, PyAny>) -> Result<Described, Reason> {
    if let Ok(tuple) = object.cast::<PyTuple>() {
        type Parts = (u64, u64, u64, Vec<u64>, String, String);
        let format = if tuple.len() == 7 { tuple.get_item(6)?.extract().ok() } else { Some(FORMAT_ND) };
        let parts = tuple.get_slice(0, 6).extract::<Parts>().ok().filter(|_| tuple.len() <= 7);
        let (Some((address, count, element_bytes, shape, dtype, device)), Some(format)) = (parts, format)
        else {
            return Err(
                "expected (address, count, element_size, shape, dtype, device), and a format, as rfork.Tensor has them"
                    .into(),
            );
        };
        let (storage, keeper) = (None, Box::new(object.clone().unbind()));
        return Ok(Described {
            address,
            count,
            element_bytes,
            shape,
            dtype,
            device,
            format,
            storage,
            keeper,
        });
    }
    if object.hasattr("data_ptr")? && object.hasattr("is_contiguous")? {
        return torch(object);
    }
    // A view knows its strides even where the object does not tell them (ctypes).
    if let Ok(buffer) = PyMemoryView::from(object).and_then(|view| PyUntypedBuffer::get(&view)) {
        return of_buffer(buffer);
    }
    if object.hasattr("__dlpack__")? {
        return dlpack(object);
    }
    Err(Reason::Text(format!(
        "{} has neither torch's methods nor the buffer protocol nor DLPack",
        object.get_type().name()?
    )))
}

fn torch(object: &Bound<'_, PyAny>) -> Result<Described, Reason> {
    if !object.call_method0("is_contiguous")?.is_truthy()? {
        return Err(NOT_CONTIGUOUS.into());
    }
    let dtype = object.getattr("dtype")?.str()?.to_string();
    let device = object.getattr("device")?.str()?.to_string();
    let (format, storage) =
        if device == "cpu" { (FORMAT_ND, None) } else { (npu_format(object)?, storage(object)) };
    Ok(Described {
        address: object.call_method0("data_ptr")?.extract()?,
        count: object.call_method0("numel")?.extract()?,
        element_bytes: object.call_method0("element_size")?.extract()?,
        shape: object.getattr("shape")?.extract()?,
        dtype: dtype.strip_prefix("torch.").unwrap_or(&dtype).to_owned(),
        device,
        format,
        storage,
        keeper: Box::new(object.clone().unbind()),
    })
}

/// How a tensor of torch's lies in an NPU's memory: torch's extension for NPUs tells, if it is there.
fn npu_format(tensor: &Bound<'_, PyAny>) -> PyResult<i64> {
    match loaded(tensor.py(), "torch_npu") {
        Some(extension) => extension.call_method1("get_npu_format", (tensor,))?.extract(),
        None => Ok(FORMAT_ND),
    }
}

/// The storage of a tensor of torch's, if it can be had: only how memory is registered depends on it.
fn storage(tensor: &Bound<'_, PyAny>) -> Option<(u64, u64)> {
    let storage = tensor.call_method0("untyped_storage").ok()?;
    Some((
        storage.call_method0("data_ptr").ok()?.extract().ok()?,
        storage.call_method0("nbytes").ok()?.extract().ok()?,
    ))
}

/// What torch's allocator for NPUs has allocated, `(address, bytes)`; `None` where there is none, or it does not tell.
fn segments(py: Python<'_>) -> Option<Vec<(u64, u64)>> {
    let memory = loaded(py, "torch")?.getattr("npu").ok()?.getattr("memory").ok()?;
    let snapshot: Vec<Bound<'_, PyAny>> = memory.call_method0("memory_snapshot").ok()?.extract().ok()?;
    let of = |segment: &Bound<'_, PyAny>| -> PyResult<(u64, u64)> {
        Ok((segment.get_item("address")?.extract()?, segment.get_item("total_size")?.extract()?))
    };
    snapshot.iter().map(of).collect::<PyResult<Vec<_>>>().ok()
}

/// A module that somebody has imported.
fn loaded<'py>(py: Python<'py>, name: &str) -> Option<Bound<'py, PyAny>> {
    py.import("sys").ok()?.getattr("modules").ok()?.get_item(name).ok()
}

fn of_buffer(buffer: PyUntypedBuffer) -> Result<Described, Reason> {
    if buffer.readonly() {
        return Err("it is read-only".into());
    }
    if !buffer.is_c_contiguous() {
        return Err(NOT_CONTIGUOUS.into());
    }
    let format = buffer.format().to_string_lossy();
    let dtype = dtype_of_buffer(&format, buffer.item_size())
        .ok_or_else(|| Reason::Text(format!("its elements ('{format}') are no numbers of this machine")))?;
    Ok(Described {
        address: buffer.buf_ptr() as u64,
        count: buffer.item_count() as u64,
        element_bytes: buffer.item_size() as u64,
        shape: buffer.shape().iter().map(|dimension| *dimension as u64).collect(),
        dtype: dtype.to_owned(),
        device: "cpu".to_owned(),
        format: FORMAT_ND,
        storage: None,
        keeper: Box::new(buffer),
    })
}

/// `DLTensor` of `dlpack.h`, version 1.1, which versions 0 and 1 share. It is also the beginning of what a capsule
/// named `dltensor` points to.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: c_int,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensorVersioned` of `dlpack.h`, version 1.1: what a capsule named `dltensor_versioned` points to. Whatever
/// follows in later versions of the same major number is behind this.
#[repr(C)]
struct DlVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: *mut c_void,
    flags: u64,
    tensor: DlTensor,
}

/// The version that is asked for, and read.
const DLPACK_VERSION: (u32, u32) = (1, 1);
/// `DLPACK_FLAG_BITMASK_READ_ONLY`.
const DLPACK_READ_ONLY: u64 = 1;

/// Exporters of before version 1 cannot mark what they give as read-only, and refuse to give that.
fn dlpack(object: &Bound<'_, PyAny>) -> Result<Described, Reason> {
    let py = object.py();
    let arguments = [("max_version", DLPACK_VERSION)].into_py_dict(py)?;
    let capsule = match object.call_method("__dlpack__", (), Some(&arguments)) {
        // From before there were versions.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => object.call_method0("__dlpack__")?,
        given => given?,
    };
    let capsule = capsule.cast::<PyCapsule>().map_err(|_| Reason::from("its __dlpack__ gives no capsule"))?;
    // SAFETY of both: a capsule of this name points to a structure of that kind, which lives until it is taken over, or
    // the capsule, which is kept, goes. Only its fields are read, while the GIL is held.
    let tensor = if let Ok(pointer) = capsule.pointer_checked(Some(c"dltensor_versioned")) {
        // SAFETY: as above. Version and flags come first in each version.
        let versioned = unsafe { pointer.cast::<DlVersioned>().as_ref() };
        if versioned.major != DLPACK_VERSION.0 {
            let DlVersioned { major, minor, .. } = versioned;
            return Err(Reason::Text(format!(
                "it is DLPack of version {major}.{minor}, which is not known here"
            )));
        }
        if versioned.flags & DLPACK_READ_ONLY != 0 {
            return Err("it is read-only".into());
        }
        &versioned.tensor
    } else {
        let pointer = capsule.pointer_checked(Some(c"dltensor"))?;
        // SAFETY: as above; a `DLManagedTensor` begins with its tensor.
        unsafe { pointer.cast::<DlTensor>().as_ref() }
    };
    let dimensions =
        usize::try_from(tensor.ndim).map_err(|_| Reason::from("it has a negative number of dimensions"))?;
    let sizes = |at: *const i64| {
        if dimensions == 0 || at.is_null() {
            return Vec::new();
        }
        // SAFETY: where there is an array, it has as many entries as there are dimensions.
        unsafe { std::slice::from_raw_parts(at, dimensions) }.to_vec()
    };
    let shape = sizes(tensor.shape).into_iter().map(u64::try_from).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| Reason::from("it has a negative dimension"))?;
    if shape.len() != dimensions
        || !tensor.strides.is_null() && !is_contiguous(&shape, &sizes(tensor.strides))
    {
        return Err(NOT_CONTIGUOUS.into());
    }
    let (dtype, element_bytes) =
        dtype_of_dlpack(tensor.code, tensor.bits, tensor.lanes).ok_or_else(|| {
            let DlTensor { code, bits, lanes, .. } = tensor;
            Reason::Text(format!(
                "its elements (DLPack type {code}, {bits} bits, {lanes} lanes) are none that torch has"
            ))
        })?;
    let count = shape.iter().try_fold(1u64, |count, dimension| count.checked_mul(*dimension));
    let on_host = DLPACK_HOST.contains(&tensor.device_type);
    Ok(Described {
        address: tensor.data as u64 + tensor.byte_offset,
        count: count.ok_or_else(|| Reason::from("it has more elements than 64 bits count"))?,
        element_bytes,
        shape,
        dtype: dtype.to_owned(),
        device: if on_host {
            "cpu".to_owned()
        } else {
            format!("DLPack device {}:{}", tensor.device_type, tensor.device_id)
        },
        format: FORMAT_ND,
        storage: None,
        keeper: Box::new(capsule.clone().unbind()),
    })
}
