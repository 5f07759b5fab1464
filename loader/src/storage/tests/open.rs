//! What `open` finds, and each way in which a model can lie to it.

use super::*;
use crate::storage::layout::{self, Layout};
use crate::storage::{Checkpoint, PassedOver, StorageError, keep_assigned, read_headers};

/// The text of the error that opening gives.
fn refusal(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

/// The text of the error for a file made of that header and so many bytes after it.
fn refusal_of(header: &str, data_bytes: usize) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    write_raw(&path, header, data_bytes);
    let text = refusal(&path);
    assert!(text.contains("w.safetensors"), "{text}");
    text
}

macro_rules! assert_says {
    ($text:expr, $($part:expr),+) => {{
        let text: String = $text;
        $(assert!(text.contains($part), "'{}' is not in: {text}", $part);)+
    }};
}

const GOOD: &str = r#"{"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}"#;

#[test]
fn a_sound_file_is_read_and_tensors_without_elements_are_left_out() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]},"none":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"s":{"dtype":"U8","shape":[],"data_offsets":[11,12]}}   "#;
    write_raw(&path, header, 12);
    for path in [path.as_path(), directory.path()] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let tensors = checkpoint.manifest().tensors();
        let described: Vec<_> = tensors
            .iter()
            .map(|t| (t.name.as_str(), t.dtype.as_deref().unwrap(), t.shape.clone().unwrap(), t.bytes()))
            .collect();
        assert_eq!(
            described,
            [("a", "bfloat16", vec![2, 2], 8), ("b", "int8", vec![3], 3), ("s", "uint8", vec![], 1)]
        );
        assert_eq!(checkpoint.files().count(), 1);
    }
}

#[test]
fn half_bytes_are_counted_as_torch_packs_them() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    write_raw(&path, r#"{"a":{"dtype":"F4","shape":[3,4],"data_offsets":[0,6]}}"#, 6);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensor = &checkpoint.manifest().tensors()[0];
    assert_eq!(tensor.dtype.as_deref(), Some("float4_e2m1fn_x2"));
    assert_eq!((tensor.shape.as_deref(), tensor.bytes()), (Some(&[3, 2][..]), 6));
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"F4","shape":[4,3],"data_offsets":[0,6]}}"#, 6),
        "tensor 'a'",
        "cannot be packed"
    );
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}"#, 3),
        "tensor 'a'",
        "F6_E2M3",
        "torch does not have"
    );
}

#[test]
fn an_unknown_type_is_named_with_its_tensor() {
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"F7","shape":[4],"data_offsets":[0,4]}}"#, 4),
        "tensor 'a'",
        "F7"
    );
}

#[test]
fn an_empty_file_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.safetensors");
    fs::write(&path, "").unwrap();
    assert_says!(refusal(directory.path()), "model.safetensors", "0 bytes, too few", "download it again");
}

#[test]
fn a_header_that_is_cut_off_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    write_raw(&path, GOOD, 11);
    resize(&path, -20);
    assert_says!(refusal(&path), "header should have", "the file ends after");
}

#[test]
fn data_that_is_cut_off_names_the_tensor_that_it_costs() {
    assert_says!(refusal_of(GOOD, 10), "tensor 'b'", "should end at byte 11", "holds 10 bytes");
    assert_says!(refusal_of(GOOD, 3), "tensor 'a'", "should end at byte 8", "holds 3 bytes");
}

#[test]
fn trailing_bytes_are_refused() {
    assert_says!(refusal_of(GOOD, 15), "4 bytes follow its last tensor", "11 of 15");
}

#[test]
fn a_header_length_that_lies_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    for length in [GOOD.len() as u64 - 5, GOOD.len() as u64 + 5, 0] {
        write_raw(&path, GOOD, 11);
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        assert_says!(refusal(&path), "w.safetensors", "not that of a safetensors file");
    }
}

#[test]
fn a_huge_header_takes_no_memory() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    for length in [u64::MAX, 1 << 40, 100_000_001] {
        // Sparse, so that it is the length that is refused and not the size of the file.
        fs::write(&path, length.to_le_bytes()).unwrap();
        resize(&path, 200_000_000);
        assert_says!(refusal(&path), "more than the 100000000 that are accepted");
    }
}

#[test]
fn overlapping_tensors_are_refused() {
    assert_says!(
        refusal_of(
            r#"{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[8],"data_offsets":[4,12]}}"#,
            12
        ),
        "tensor 'b' starts at byte 4, before the end of tensor 'a' at byte 8"
    );
}

#[test]
fn a_hole_between_tensors_is_refused() {
    assert_says!(
        refusal_of(
            r#"{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[8],"data_offsets":[9,17]}}"#,
            17
        ),
        "tensor 'b' starts at byte 9 and leaves a hole after the end of tensor 'a' at byte 8"
    );
}

#[test]
fn a_tensor_that_ends_before_it_starts_is_refused() {
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"I8","shape":[0],"data_offsets":[4,0]}}"#, 4),
        "tensor 'a' ends at"
    );
}

#[test]
fn a_shape_that_is_not_its_size_is_refused() {
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,8]}}"#, 8),
        "tensor 'a' has shape [2, 2] of F32, which is 16 bytes, but the header gives it 8 bytes"
    );
    let most = u64::MAX;
    assert_says!(
        refusal_of(&format!(r#"{{"a":{{"dtype":"F32","shape":[{most},2],"data_offsets":[0,8]}}}}"#), 8),
        "tensor 'a' has a size beyond 2^64"
    );
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let twice = r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"I8","shape":[4],"data_offsets":[4,8]}}"#;
    assert_says!(refusal_of(twice, 8), "not that of a safetensors file: 'a' is listed twice");
}

#[test]
fn a_name_out_of_a_file_is_shown_in_one_line_that_ends() {
    let named =
        |name: &str| format!(r#"{{"{name}":{{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}}}"#);
    assert_says!(refusal_of(&named(r"a\n\u202e"), 3), r"tensor 'a\n\u{202e}' has type F6_E2M3");
    assert!(refusal_of(&named(&"n".repeat(9_000)), 3).len() < 1_000);
    let offsets = r#"{"a\u001b[2J":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_says!(refusal_of(offsets, 2), r"a\u{1b}[2J", "leaves a hole");
}

#[test]
fn what_is_not_json_is_refused() {
    for header in ["", "garbage", "[]", "null", "{\"a\":1}", "\u{0}\u{0}"] {
        assert_says!(refusal_of(header, 0), "not that of a safetensors file");
    }
    assert_says!(refusal_of(r#"{"a":{"dtype":"I8","shape":[-4],"data_offsets":[0,4]}}"#, 4), "tensor 'a'");
}

#[test]
fn a_model_without_any_byte_is_refused() {
    assert_says!(
        refusal_of(r#"{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}"#, 0),
        "lists no tensor"
    );
}

#[test]
fn a_directory_without_a_model_is_refused() {
    let directory = TempDir::new().unwrap();
    assert_says!(refusal(directory.path()), "neither model.safetensors.index.json nor");
    assert_says!(refusal(&directory.path().join("nowhere")), "nowhere", "opening");
}

#[test]
fn several_files_without_an_index_are_refused() {
    let directory = small_directory();
    fs::remove_file(directory.path().join(INDEX_NAME)).unwrap();
    assert_says!(refusal(directory.path()), "2 *.safetensors files but no model.safetensors.index.json");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let directory = small_directory();
    let pipe = shard(&directory, 1);
    fs::remove_file(&pipe).unwrap();
    let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(status.success());
    assert_says!(refusal(directory.path()), "model-00001.safetensors", "not a regular file");
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    // Permissions do not stop root; a link to itself stops everyone.
    let directory = small_directory();
    let path = shard(&directory, 1);
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err();
    assert!(matches!(&error, StorageError::Io { path: named, .. } if *named == path), "{error}");
}

#[test]
fn a_missing_shard_is_named() {
    let directory = small_directory();
    fs::remove_file(shard(&directory, 1)).unwrap();
    assert_says!(refusal(directory.path()), "model-00001.safetensors", "opening");
}

#[test]
fn a_sound_directory_is_opened_through_its_index_too() {
    let directory = small_directory();
    for path in [directory.path(), &directory.path().join(INDEX_NAME)] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.files().count(), 2);
        assert_eq!(checkpoint.manifest().total_bytes(), 4 * 64);
    }
}

#[test]
fn tensors_that_the_index_does_not_give_to_their_file_are_passed_over_and_counted() {
    let directory = small_directory();
    let path = directory.path();
    let model = small_model();
    let stale = Sample::new(Dtype::F32, &[3], 77);
    // A stale "a" in the second file, a stale "d" in the first, and one that the index does not list, in both.
    let with_stale = |file: usize, names: &[&str], stale_names: &[&str]| {
        let mut tensors: BTreeMap<String, &Sample> =
            names.iter().map(|name| (name.to_string(), &model[*name].0)).collect();
        tensors.extend(stale_names.iter().map(|name| (name.to_string(), &stale)));
        write_file(&path.join(shard_name(file)), tensors.iter().map(|(name, sample)| (name, *sample)));
    };
    with_stale(0, &["a", "b"], &["d", "old"]);
    with_stale(1, &["c", "d"], &["a", "old"]);
    let checkpoint = Checkpoint::open(path).unwrap();
    let sound = small_directory();
    let expected = Checkpoint::open(sound.path()).unwrap();
    assert_eq!(checkpoint.manifest(), expected.manifest());
    assert_eq!(checkpoint.model_digest().unwrap(), expected.model_digest().unwrap());

    let Layout::Sharded(index) = layout::find(path).unwrap() else { panic!("it has an index") };
    let mut shards = read_headers(&index.paths()).unwrap();
    let passed_over = keep_assigned(&index, &mut shards);
    let first = format!("'d' in '{}'", shard_name(0));
    assert_eq!(passed_over, PassedOver { of_other_files: 2, unlisted: 2, first: Some(first) });
    assert_eq!(keep_assigned(&index, &mut shards), PassedOver::default());
}

#[test]
fn a_tensor_that_its_file_lacks_is_named() {
    let directory = small_directory();
    edit_index(directory.path(), |index| index["weight_map"]["e"] = shard_name(1).into());
    let text = refusal(directory.path());
    assert_says!(
        text.clone(),
        "tensor 'e' should be in 'model-00001.safetensors', which does not hold it;",
        "download both"
    );
    // Another file's copy is not taken for it.
    edit_index(directory.path(), |index| {
        index["weight_map"].as_object_mut().unwrap().remove("e");
        index["weight_map"]["a"] = shard_name(1).into();
    });
    assert_says!(
        refusal(directory.path()),
        "tensor 'a' should be in 'model-00001.safetensors', which does not hold it but 'model-00000.safetensors' does;"
    );
}

#[test]
fn an_index_under_another_name_is_found_when_it_is_the_only_one() {
    let directory = small_directory();
    let path = directory.path();
    let other = path.join("diffusion_pytorch_model.safetensors.index.json");
    fs::rename(path.join(INDEX_NAME), &other).unwrap();
    // Neither of these is one: a shell's `*` does not see the first, either.
    fs::write(path.join("._model.safetensors.index.json"), "").unwrap();
    fs::write(path.join("pytorch_model.bin.index.json"), "").unwrap();
    let opened = |path: &Path| Checkpoint::open(path).unwrap().manifest().total_bytes();
    assert_eq!(opened(path), 4 * 64);
    // It goes before a single file, as the usual one does.
    write_file(&path.join("model.safetensors"), [(&"single".to_owned(), &Sample::new(Dtype::U8, &[1], 1))]);
    assert_eq!(opened(path), 4 * 64);

    let second = path.join("variant.safetensors.index.json");
    fs::copy(&other, &second).unwrap();
    assert_says!(
        refusal(path),
        "several indexes and no model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.json, variant.safetensors.index.json; give one of them"
    );
    assert_eq!(opened(&second), 4 * 64);
    fs::write(path.join(INDEX_NAME), "{}").unwrap();
    assert_says!(refusal(path), "model.safetensors.index.json': it is not a safetensors index");
}

#[test]
fn an_index_that_leads_out_of_the_directory_is_not_followed() {
    let outside = small_directory();
    let absolute = shard(&outside, 1).to_string_lossy().into_owned();
    let directory = small_directory();
    for file in ["../model-00001.safetensors", "x/../../model-00001.safetensors", &absolute, "", ".", "./x"] {
        edit_index(directory.path(), |index| index["weight_map"]["c"] = file.into());
        assert_says!(refusal(directory.path()), "tensor 'c'", "outside of the model's directory");
    }
}

#[test]
fn an_index_that_is_none_is_refused() {
    let directory = small_directory();
    let cases = [
        ("", "not a safetensors index"),
        ("[]", "not a safetensors index"),
        ("{}", "weight_map"),
        (r#"{"weight_map":{}}"#, "lists no tensor"),
        (r#"{"weight_map":{"a":1}}"#, "not a safetensors index"),
        (r#"{"weight_map":{"a":"x","a":"y"}}"#, "tensor 'a' is listed twice, the first time in 'x'"),
        (r#"{"weight_map":{"a":"x"},"weight_map":{"a":"x"}}"#, "duplicate field"),
    ];
    for (text, expected) in cases {
        fs::write(directory.path().join(INDEX_NAME), text).unwrap();
        assert_says!(refusal(directory.path()), INDEX_NAME, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_header_is_read_or_refused(header in prop_oneof![
        ".{0,80}",
        r#"\{"a":\{"dtype":"(I8|F32|F4)","shape":\[[0-9]{1,3}(,[0-9]{1,3})?\],"data_offsets":\[[0-9],[0-9]{1,2}\]\}\}"#,
    ], data_bytes in 0u64..20) {
        if let Ok(entries) = crate::storage::header::parse(Path::new("w"), header.as_bytes(), data_bytes) {
            let end = 8 + header.len() as u64 + data_bytes;
            let tensors = entries.iter().map(|entry| entry.tensor.bytes()).sum::<u64>();
            prop_assert_eq!(tensors, data_bytes);
            prop_assert!(entries.iter().all(|entry| entry.offset + entry.tensor.bytes() <= end));
        }
    }

    #[test]
    fn a_byte_changed_in_a_header_is_no_reason_to_panic(at in 0usize..GOOD.len(), byte: u8) {
        let mut header = GOOD.as_bytes().to_vec();
        header[at] = byte;
        let _ = crate::storage::header::parse(Path::new("w"), &header, 11);
    }
}
