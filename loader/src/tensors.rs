//! Tensors that somebody else allocated, as the ways in which programs pass them describe them. Pure.

/// The torch name of an element type, from the format of Python's buffer protocol and the size of an item in bytes;
/// `None` for types that are no numbers, or in another byte order than this machine's.
///
/// Source: the `struct` module of Python, and `Zf`/`Zd` of PEP 3118.
pub fn dtype_of_buffer(format: &str, item_bytes: usize) -> Option<&'static str> {
    let native = if cfg!(target_endian = "little") { '<' } else { '>' };
    let format = format.strip_prefix(['@', '=', native]).unwrap_or(format);
    let (signed, unsigned) = match item_bytes {
        1 => ("int8", "uint8"),
        2 => ("int16", "uint16"),
        4 => ("int32", "uint32"),
        8 => ("int64", "uint64"),
        _ => ("", ""),
    };
    let (dtype, expected_bytes) = match format {
        "b" => ("int8", 1),
        // A `memoryview` of bytes has the empty format for it.
        "B" | "" => ("uint8", 1),
        "?" => ("bool", 1),
        // As large as the C type is on this machine.
        "h" | "i" | "l" | "q" | "n" if !signed.is_empty() => (signed, item_bytes),
        "H" | "I" | "L" | "Q" | "N" if !unsigned.is_empty() => (unsigned, item_bytes),
        "e" => ("float16", 2),
        "f" => ("float32", 4),
        "d" => ("float64", 8),
        "Zf" => ("complex64", 8),
        "Zd" => ("complex128", 16),
        _ => return None,
    };
    (item_bytes == expected_bytes).then_some(dtype)
}

/// The torch name of an element type, and its size in bytes, from a `DLDataType`; `None` for types that torch does
/// not have, or whose elements do not fill bytes.
///
/// Source: `dlpack.h`, version 1.1.
pub fn dtype_of_dlpack(code: u8, bits: u8, lanes: u16) -> Option<(&'static str, u64)> {
    let dtype = match (code, bits) {
        (0, 8) => "int8",
        (0, 16) => "int16",
        (0, 32) => "int32",
        (0, 64) => "int64",
        (1, 8) => "uint8",
        (1, 16) => "uint16",
        (1, 32) => "uint32",
        (1, 64) => "uint64",
        (2, 16) => "float16",
        (2, 32) => "float32",
        (2, 64) => "float64",
        (4, 16) => "bfloat16",
        (5, 64) => "complex64",
        (5, 128) => "complex128",
        (6, 8) => "bool",
        (10, 8) => "float8_e4m3fn",
        (11, 8) => "float8_e4m3fnuz",
        (12, 8) => "float8_e5m2",
        (13, 8) => "float8_e5m2fnuz",
        (14, 8) => "float8_e8m0fnu",
        _ => return None,
    };
    (lanes == 1).then_some((dtype, u64::from(bits) / 8))
}

/// Whether elements of this shape lie one after the other, the last dimension fastest, when a step in each dimension
/// is so many elements.
pub fn is_contiguous(shape: &[u64], strides: &[i64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1u64;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(dimension, stride)| {
            // Nobody steps along a dimension of one.
            let fits = *dimension == 1 || u64::try_from(*stride) == Ok(expected);
            expected = expected.saturating_mul(*dimension);
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn types_have_torch_s_names() {
        let cases = [
            ("f", 4, Some("float32")),
            ("<d", 8, Some("float64")),
            ("e", 2, Some("float16")),
            ("l", 8, Some("int64")),
            ("l", 4, Some("int32")),
            ("B", 1, Some("uint8")),
            ("?", 1, Some("bool")),
            ("Zf", 8, Some("complex64")),
            (">f", 4, None),
            ("O", 8, None),
            ("f", 8, None),
            ("T{<f:a:}", 4, None),
            ("l", 3, None),
        ];
        for (format, bytes, dtype) in cases {
            assert_eq!(dtype_of_buffer(format, bytes), dtype, "{format} {bytes}");
        }
        assert_eq!(dtype_of_dlpack(4, 16, 1), Some(("bfloat16", 2)));
        assert_eq!(dtype_of_dlpack(10, 8, 1), Some(("float8_e4m3fn", 1)));
        assert_eq!(dtype_of_dlpack(2, 32, 4), None, "vectors");
        assert_eq!(dtype_of_dlpack(17, 4, 1), None, "half bytes");
    }

    #[test]
    fn gaps_and_turned_dimensions_are_not_contiguous() {
        assert!(is_contiguous(&[2, 3], &[3, 1]) && is_contiguous(&[], &[]));
        assert!(is_contiguous(&[1, 3], &[99, 1]) && is_contiguous(&[0, 3], &[7, 7]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]) && !is_contiguous(&[2, 3], &[4, 1]));
        assert!(!is_contiguous(&[3], &[-1]) && !is_contiguous(&[3], &[0]) && !is_contiguous(&[2, 3], &[1]));
    }

    proptest! {
        #[test]
        fn contiguous_means_that_each_element_is_where_its_number_says(
            shape in prop::collection::vec(1u64..4, 0..4), strides in prop::collection::vec(-1i64..10, 0..4)
        ) {
            prop_assume!(shape.len() == strides.len());
            let count: u64 = shape.iter().product();
            let place = |number: u64| {
                let mut left = number;
                shape.iter().zip(&strides).rev().fold(0i64, |at, (dimension, stride)| {
                    let index = left % dimension;
                    left /= dimension;
                    at + i64::try_from(index).unwrap() * stride
                })
            };
            let in_place = (0..count).all(|number| u64::try_from(place(number)) == Ok(number));
            prop_assert_eq!(is_contiguous(&shape, &strides), in_place);
        }
    }
}
