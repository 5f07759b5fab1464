#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| (rfork_tests::fuzz::token_file::TARGET.run)(data));
