//! The fuzz targets, compiled and run: each gets some thousand random inputs, with a `fuzz_target!` of
//! our own in place of libFuzzer's.
//!
//! `fuzz/` is a workspace of its own that needs another compiler, so nothing else of the gate would
//! notice that a decoder which it names has moved. The targets' files are modules here, as they are.

// The targets say `libfuzzer_sys::fuzz_target!`.
extern crate self as libfuzzer_sys;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use atoll_env::random::Prng;

/// Inputs of each target. libFuzzer's millions find what is rare; these find what is broken.
const INPUTS: usize = 20_000;

/// Makes a function of a target's closure.
#[macro_export]
macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:expr) => {
        pub(crate) fn target($bytes: &[u8]) {
            $body
        }
    };
}

include!("../fuzz/targets.rs");

/// The workspace of the targets.
fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Draws an input: few different bytes, since formats have small numbers and zeros in them, or any.
fn input(prng: &mut Prng) -> Vec<u8> {
    let alphabet = [2, 8, 256][prng.index(3)];
    let len = [8, 40, 300][prng.index(3)];
    (0..prng.below(len)).map(|_| prng.below(alphabet) as u8).collect()
}

/// Draws a pipeline of commands as clients write them, or nearly so.
fn pipeline(prng: &mut Prng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + prng.below(3) {
        let args: Vec<Vec<u8>> = (0..1 + prng.below(4))
            .map(|_| (0..prng.below(12)).map(|_| b"\r\n$*0aZ\xff"[prng.index(8)]).collect())
            .collect();
        atoll_resp::request(&mut bytes, &args);
    }
    for _ in 0..prng.below(3) {
        let at = prng.index(bytes.len());
        match prng.below(3) {
            0 => bytes[at] = b"\r\n$*-+0123456789 "[prng.index(17)],
            1 => bytes.truncate(at + 1),
            _ => bytes.insert(at, b"\r\n$*-+0123456789 "[prng.index(17)]),
        }
    }
    bytes
}

#[test]
fn no_target_panics_on_random_bytes() {
    for (name, target) in TARGETS {
        let mut prng = Prng::new(1).fork(name);
        // Opening a file goes through a simulated disk.
        let slow = name.starts_with("log_") || *name == "value_file";
        let inputs = if slow { INPUTS / 10 } else { INPUTS };
        target(b"");
        (0..inputs).for_each(|_| target(&input(&mut prng)));
        if *name == "resp_request" {
            (0..inputs).for_each(|_| target(&pipeline(&mut prng)));
        }
    }
}

#[test]
fn every_file_is_a_target_that_is_built_and_tried() {
    let listed: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let files = fuzz().join("fuzz_targets").read_dir().unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(files, listed);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let built: BTreeSet<String> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
        .map(str::to_owned)
        .collect();
    assert_eq!(built, listed);
}
