#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plc_fuzz::archive_index(data));
