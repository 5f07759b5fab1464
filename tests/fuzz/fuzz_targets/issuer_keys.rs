#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| (rfork_tests::fuzz::issuer_keys::TARGET.run)(data));
