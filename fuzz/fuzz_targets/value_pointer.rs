#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| atoll_lsm::fuzzing::run("value_pointer", bytes));
