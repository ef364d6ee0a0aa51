//! What the program says about allocations, by running it: in its processes no other test allocates,
//! so that figures can be exact.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]

use std::path::Path;
use std::process::Command;

/// Runs the program and returns the rows it wrote as JSON.
fn rows(args: &[&str], dir: &Path) -> Vec<String> {
    let json = dir.join("rows.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_atoll-bench"))
        .args(args)
        .arg("--json")
        .arg(&json)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(json).unwrap().lines().map(String::from).collect()
}

fn field(row: &str, name: &str) -> Option<f64> {
    let (_, rest) = row.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{row}"));
    rest[..rest.find([',', '}']).unwrap()].parse().ok()
}

#[test]
fn structures_count_what_they_allocate_for_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(&["structures", "--entries", "2k", "--runs", "1"], dir.path());
    let row = |name: &str| {
        let found = rows.iter().find(|row| row.contains(&format!("\"{name}\"")));
        found.unwrap_or_else(|| panic!("no {name} in {rows:?}")).as_str()
    };
    let allocs = |name| field(row(name), "allocs_per_entry").unwrap();
    let bytes = |name| field(row(name), "bytes_per_entry").unwrap();

    // The memtable's regions are mapped; what is left are its own few boxes.
    assert!(allocs("arena-skiplist") < 0.01, "{rows:?}");
    // The index takes a 16th of the capacity.
    assert!((116.0 + 50.0..116.0 + 80.0).contains(&bytes("arena-skiplist")), "{rows:?}");
    // A box for the key and one for the value; a vector that doubles grows ten times.
    assert!((2.0..2.02).contains(&allocs("sorted-vec")), "{rows:?}");
    assert!((116.0 + 32.0..116.0 + 64.0).contains(&bytes("sorted-vec")), "{rows:?}");
    // A node of a B-tree has 5 to 11 records.
    assert!((2.0 + 1.0 / 11.0..2.0 + 1.0 / 3.0).contains(&allocs("btree-map")), "{rows:?}");
    assert!((2.0..2.02).contains(&allocs("hash-map")), "{rows:?}");
    assert_eq!(field(row("hash-map"), "scan_forward_ns"), None, "a hash map has no order");
    assert!(field(row("btree-map"), "scan_reverse_ns").is_some_and(|nanos| nanos > 0.0));
}

#[test]
fn the_engine_is_counted_while_it_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let workloads = "fillrandom,readrandom-cached,recovery";
    let sizes = ["--size", "2k", "--memory", "8MiB", "--runs", "1"];
    let args = [&["engine", "--workload", workloads][..], &sizes].concat();
    let rows = rows(&args, dir.path());
    for row in rows.iter().filter(|row| row.contains("\"atoll\"")) {
        let allocs = field(row, "allocs_per_op").unwrap();
        let bytes = field(row, "alloc_bytes_per_op").unwrap();
        if row.contains("readrandom") {
            // Reads of cached data allocate next to nothing. The loading of 36,000 records before
            // them, and the reads that warm the cache, are not theirs.
            assert!(allocs < 2.0, "{row}");
        } else {
            assert!(allocs > 0.0 && bytes > 0.0, "{row}");
        }
    }
    assert!(rows.len() >= 3, "{rows:?}");
}
