//! The digest of a whole model.

use super::*;
use crate::digest::DigestAlgorithm;
use crate::engine::memory::WeightMemory;
use crate::storage::model_digest::ModelHasher;
use crate::storage::{Checkpoint, FillOptions, StorageError};

/// Of [`models`], those that the documented program knows: it leaves out what torch packs.
fn unpacked_models() -> impl Strategy<Value = Model> {
    models().prop_map(|mut model| {
        model.retain(|_, (sample, _)| sample.dtype != Dtype::F4);
        model
    })
}

fn digest_of(path: &Path) -> String {
    Checkpoint::open(path).unwrap().model_digest().unwrap().to_string()
}

/// What the documented program says of these files.
fn program<'a>(files: impl IntoIterator<Item = &'a Path>) -> String {
    let mut python = std::process::Command::new("python3");
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/storage/model_digest.py")).args(files);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn the_documented_program_computes_it(model in unpacked_models()) {
        let directory = TempDir::new().unwrap();
        write_sharded(directory.path(), &model);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let digest = checkpoint.model_digest().unwrap().to_string();
        prop_assert_eq!(program(checkpoint.files()), digest.clone());
        prop_assert_eq!(program([directory.path().join(INDEX_NAME).as_path()]), digest);
    }

    #[test]
    fn the_content_is_that_of_a_worker_which_reads_the_files(model in models(), threads in 1usize..4) {
        let directory = TempDir::new().unwrap();
        write_sharded(directory.path(), &model);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let (cancel, progress) = (tokio_util::sync::CancellationToken::new(), std::sync::atomic::AtomicU64::new(0));
        for algorithm in DigestAlgorithm::ALL {
            let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes()).unwrap();
            memory.digest_by(algorithm);
            let options = FillOptions { algorithm, ..FillOptions::default() };
            checkpoint.fill(&memory, &memory.missing(), &options, &cancel, &progress).unwrap();
            let content = checkpoint.content(algorithm, threads.try_into().unwrap()).unwrap();
            prop_assert_eq!(memory.content_by_digests(checkpoint.manifest()), Some(content));
        }
    }

    #[test]
    fn it_does_not_depend_on_how_the_model_is_cut_into_files(model in models()) {
        let (sharded, single) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write_sharded(sharded.path(), &model);
        write_file(&single.path().join("w.safetensors"), model.iter().map(|(name, (sample, _))| (name, sample)));
        prop_assert_eq!(digest_of(sharded.path()), digest_of(single.path()));
    }

    #[test]
    fn every_byte_counts(model in models(), at in any::<prop::sample::Index>()) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("w.safetensors");
        let write = |model: &Model| {
            write_file(&path, model.iter().map(|(name, (sample, _))| (name, sample)));
            digest_of(&path)
        };
        let before = write(&model);
        let mut changed = model;
        let (sample, _) = changed.get_mut("always").unwrap();
        let at = at.index(sample.bytes.len());
        sample.bytes[at] ^= 1;
        prop_assert_ne!(write(&changed), before);
    }
}

#[test]
fn the_program_passes_over_what_the_index_does_not_give_to_a_file() {
    let directory = small_directory();
    let expected = digest_of(directory.path());
    let model = small_model();
    let stale = Sample::new(Dtype::F32, &[3], 77);
    let tensors = [("a", &stale), ("c", &model["c"].0), ("d", &model["d"].0), ("old", &stale)];
    let tensors: Vec<_> = tensors.map(|(name, sample)| (name.to_owned(), sample)).into();
    write_file(&shard(&directory, 1), tensors.iter().map(|(name, sample)| (name, *sample)));
    assert_eq!(digest_of(directory.path()), expected);
    assert_eq!(program([directory.path().join(INDEX_NAME).as_path()]), expected);
}

#[test]
fn a_tensor_of_several_buffers_is_digested_whole() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("w.safetensors");
    let sample = Sample::new(Dtype::U8, &[(2 << 20) + 3], 1);
    write_file(&path, [(&"w".to_owned(), &sample)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut hasher = ModelHasher::default();
    hasher.tensor(&checkpoint.manifest().tensors()[0]);
    hasher.bytes(&sample.bytes);
    assert_eq!(checkpoint.model_digest().unwrap(), hasher.finish());
}

#[test]
fn it_never_changes_between_versions() {
    // People compare it with what they noted down: sha256 of "a\nuint8\n2,1\n" and the bytes 1 and 2.
    let tensor = rfork_protocol::manifest::Tensor {
        name: "a".into(),
        address: 0,
        count: 2,
        element_bytes: 1,
        shape: Some(vec![2, 1]),
        dtype: Some("uint8".into()),
        format: None,
    };
    let mut hasher = ModelHasher::default();
    hasher.tensor(&tensor);
    hasher.bytes(&[1, 2]);
    assert_eq!(
        hasher.finish().to_string(),
        "4dc1452a9071694b5e3cf61a087f8bbf329ef3e612e60dcc77a57d4d0c00629c"
    );
}

#[test]
fn a_file_that_changed_since_it_was_opened_is_named() {
    let directory = small_directory();
    let path = shard(&directory, 1);
    let changes: [(&str, &dyn Fn()); 4] = [
        ("it had", &|| resize(&path, -1)),
        ("it had", &|| resize(&path, 1)),
        ("another file", &|| {
            let copy = directory.path().join("copy");
            fs::copy(&path, &copy).unwrap();
            fs::rename(copy, &path).unwrap();
        }),
        ("it was written to", &|| touch(&path)),
    ];
    for (expected, change) in changes {
        write_sharded(directory.path(), &small_model());
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        change();
        let error = checkpoint.model_digest().unwrap_err();
        assert!(matches!(&error, StorageError::Changed { tensor, .. } if tensor == "c"), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let checkpoint = {
        write_sharded(directory.path(), &small_model());
        Checkpoint::open(directory.path()).unwrap()
    };
    fs::remove_file(&path).unwrap();
    let error = checkpoint.model_digest().unwrap_err().to_string();
    assert!(error.contains("model-00001") && error.contains("tensor 'c'"), "{error}");
}
