#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| atoll_link::fuzzing::frames(bytes));
