#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| (rfork_tests::fuzz::key_files::TARGET.run)(data));
