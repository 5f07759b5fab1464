//! The element types of safetensors, as torch and vLLM Ascend name them.

use safetensors::Dtype;

/// How torch holds a safetensors type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TorchType {
    /// Its name, without `torch.`.
    pub(super) name: &'static str,
    /// Bytes of one torch element.
    pub(super) element_bytes: u64,
    /// How many safetensors elements one torch element packs, along the last dimension.
    pub(super) packed: u64,
}

/// The torch type for `dtype`, or `None` if torch has none.
pub(super) fn torch_type(dtype: Dtype) -> Option<TorchType> {
    let (name, element_bytes) = match dtype {
        // Torch has no half bytes: an element of its type is a pair.
        Dtype::F4 => return Some(TorchType { name: "float4_e2m1fn_x2", element_bytes: 1, packed: 2 }),
        Dtype::BOOL => ("bool", 1),
        Dtype::U8 => ("uint8", 1),
        Dtype::I8 => ("int8", 1),
        Dtype::F8_E5M2 => ("float8_e5m2", 1),
        Dtype::F8_E4M3 => ("float8_e4m3fn", 1),
        Dtype::F8_E8M0 => ("float8_e8m0fnu", 1),
        Dtype::F8_E4M3FNUZ => ("float8_e4m3fnuz", 1),
        Dtype::F8_E5M2FNUZ => ("float8_e5m2fnuz", 1),
        Dtype::I16 => ("int16", 2),
        Dtype::U16 => ("uint16", 2),
        Dtype::F16 => ("float16", 2),
        Dtype::BF16 => ("bfloat16", 2),
        Dtype::I32 => ("int32", 4),
        Dtype::U32 => ("uint32", 4),
        Dtype::F32 => ("float32", 4),
        Dtype::C64 => ("complex64", 8),
        Dtype::F64 => ("float64", 8),
        Dtype::I64 => ("int64", 8),
        Dtype::U64 => ("uint64", 8),
        _ => return None,
    };
    Some(TorchType { name, element_bytes, packed: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_format() {
        use Dtype as D;
        let all = [
            D::F4,
            D::BOOL,
            D::U8,
            D::I8,
            D::F8_E5M2,
            D::F8_E4M3,
            D::F8_E8M0,
            D::F8_E4M3FNUZ,
            D::F8_E5M2FNUZ,
            D::I16,
            D::U16,
            D::F16,
            D::BF16,
            D::I32,
            D::U32,
            D::F32,
            D::C64,
            D::F64,
            D::I64,
            D::U64,
        ];
        for dtype in all {
            let torch = torch_type(dtype).unwrap();
            assert_eq!(torch.element_bytes * 8, torch.packed * dtype.bitsize() as u64, "{dtype}");
        }
        assert_eq!(torch_type(D::F6_E2M3), None);
    }
}
