//! What an ordered structure in memory costs: the engine's memtable beside what else could be one.
//!
//! ```text
//! cargo run --release -p atoll-bench --features peers-rust -- structures --entries 1M
//! ```
//!
//! All hold the same records, keys of 16 and values of 100 bytes, as owned bytes of any length: a
//! structure of fixed arrays would be faster and could not be a memtable. Each measurement is a
//! process of its own, so that none inherits a heap with holes; structures take turns, and a
//! column is the median of the runs.
//!
//! # Columns
//!
//! Nanoseconds are processor time. Memory that a process touches for the first time is part of it.
//!
//! - **insert asc, insert rand**: nanoseconds per record into an empty structure that is not told
//!   how much comes, in ascending and in random order.
//! - **get rand**: nanoseconds per lookup of a key that is there, uniform over all, in the structure
//!   that random inserts left.
//! - **scan fwd, scan rev**: nanoseconds per record of a walk over that structure, touching both
//!   ends of key and value.
//! - **B/entry**: bytes held per record at the end of the random inserts, as they were asked for;
//!   the allocator's own (8 to 23 a piece with glibc) come on top. The memtable maps its memory:
//!   its figure is what records and filter take of its capacity.
//! - **allocs/entry**: allocations per record during the random inserts.
//!
//! What the times do not show: a memtable keeps versions (8 bytes of sequence number and kind a
//! record), is read by other threads while it is written, and refuses to outgrow its capacity. Of
//! the others only crossbeam's list is read while it is written.

mod kinds;
mod measure;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use self::kinds::Kind;
use self::report::Figures;
use crate::data::{KEY_LEN, VALUE_LEN};
use crate::{Failure, alloc, size};

/// What is asked for.
#[derive(clap::Args)]
pub struct Args {
    /// Records in a structure, such as 50k or 1M.
    #[arg(long, value_name = "N", value_parser = size::count, default_value = "1M")]
    entries: u64,
    /// Times each measurement is taken; the median is shown.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 3)]
    runs: u32,
    /// Also writes the rows to a file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the parent asks a child for.
#[derive(clap::Args)]
pub struct ChildArgs {
    #[arg(long, value_enum)]
    kind: Kind,
    #[arg(long)]
    entries: u64,
}

/// Measures all structures and prints the table.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut json = match &args.json {
        Some(path) => Some(
            std::fs::File::create(path).map_err(|e| format!("making {}: {e}", path.display()))?,
        ),
        None => None,
    };
    let kinds = kinds::built_in();
    for kind in &kinds {
        kind.admit(args.entries)?;
    }
    let mut runs: Vec<Vec<Figures>> = vec![vec![]; kinds.len()];
    for run in 0..args.runs as usize {
        for turn in 0..kinds.len() {
            // Each run another structure begins, so that none always follows the same one.
            let which = (run + turn) % kinds.len();
            eprintln!("run {} of {}: {}", run + 1, args.runs, kinds[which].name());
            runs[which].push(in_child(kinds[which], args.entries)?);
        }
    }
    println!(
        "keys {KEY_LEN} B, values {VALUE_LEN} B, median of {}; counting adds {:.1} ns to an \
         allocation and its release",
        args.runs,
        alloc::cost()
    );
    println!("{}", report::heading());
    for (kind, runs) in kinds.iter().zip(runs) {
        let entries = kind.entries(args.entries);
        let figures = report::median(&runs);
        println!("{}", figures.to_table(kind.name(), entries));
        if let Some(json) = &mut json {
            writeln!(json, "{}", figures.to_json(kind.name(), entries))?;
        }
    }
    Ok(())
}

/// Measures one structure and prints the line that the parent reads.
pub fn run_child(args: ChildArgs) -> Result<(), Failure> {
    println!("{}", kinds::measure(args.kind, args.entries)?.to_line());
    Ok(())
}

fn in_child(kind: Kind, entries: u64) -> Result<Figures, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args(["structures-child", "--kind", kind.name()])
        .args(["--entries", &kind.entries(entries).to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let figures = lines.lines().find_map(Figures::from_line);
    figures.ok_or_else(|| format!("measuring {} failed: {}", kind.name(), output.status).into())
}
