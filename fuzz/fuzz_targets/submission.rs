#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plc_fuzz::submission(data));
