//! The entry points of the fuzzer on any compiler: a committed corpus, and a fixed number of inputs made of it.
//!
//! ```sh
//! RFORK_FUZZ_SEED=7 RFORK_FUZZ_EXECUTIONS=1000000 cargo test --release --package rfork-tests --test fuzz -- --nocapture
//! ```
//!
//! An input that breaks a promise is left in a file, and comes into the corpus with the fix.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are tests too.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use fastrand::Rng;
use peak_alloc::PeakAlloc;
use rfork_tests::fuzz::mutate::mutated;
use rfork_tests::fuzz::{TARGETS, Target};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The first input's number, unless the environment says another: the same ones each time, so that a test that passed
/// does not fail by chance.
const SEED: u64 = 1;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn tried(name: &str) {
    // Memory is counted for the whole process, so one is tried at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).expect("an entry point of that name");
    let mut files: Vec<_> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
    files.sort_unstable();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty());
    for (file, input) in files.iter().zip(&corpus) {
        once(target, input, &file.display().to_string());
    }
    let seed = setting("RFORK_FUZZ_SEED").unwrap_or(SEED);
    let executions = setting("RFORK_FUZZ_EXECUTIONS").unwrap_or(target.executions as u64);
    println!(
        "{name}: {} of the corpus, and {executions} made of it from RFORK_FUZZ_SEED={seed}",
        corpus.len()
    );
    for number in seed..seed + executions {
        let input = mutated(&mut Rng::with_seed(number), &corpus);
        once(target, &input, &format!("RFORK_FUZZ_SEED={number} RFORK_FUZZ_EXECUTIONS=1"));
    }
}

/// One input; where it breaks a promise, it is left in a file.
fn once(target: &Target, input: &[u8], named: &str) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let tried = catch_unwind(AssertUnwindSafe(|| {
        (target.run)(input);
        let took = MEMORY.peak_usage().saturating_sub(before);
        let most = (target.most_bytes)(input.len());
        assert!(took <= most, "{} bytes of input took {took} bytes of memory; {most} at most", input.len());
    }));
    if let Err(broken) = tried {
        let file = std::env::temp_dir().join(format!("rfork-fuzz-{}", target.name));
        fs::write(&file, input).unwrap();
        println!("{}: {named} breaks a promise; the input is in {}", target.name, file.display());
        resume_unwind(broken);
    }
}

macro_rules! targets {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                tried(stringify!($name));
            }
        )*

        #[test]
        fn each_entry_point_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tried));
        }
    };
}

targets! {
    metadata,
    v1_headers,
    v2_bodies,
    v2_queries,
    checkpoint,
    settings_file,
    tcp_server,
    tcp_client,
    planner_calls,
    token_file,
    key_files,
    issuer_keys,
    credentials,
}
