#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| atoll_shard::consensus::fuzzing::entry(bytes));
