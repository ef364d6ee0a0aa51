//! Care for the data of a stopped server: verify, compact, repair.
//!
//! Each takes the directory's lock as the server does, so none of them runs beside a server. None
//! makes a directory: a typing error must not look like an empty database that is in order. A
//! directory with several stores is cared for store by store.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use atoll_env::{Env, block_on};
use atoll_lsm::driven::{self, OpenOptions};
use atoll_lsm::{Options, RepairOptions};

use crate::failure::{Failure, Result};
use crate::value::Size;

/// Returns the stores of a data directory; a bare engine's directory is its own only one.
pub(crate) fn stores(data: &Path) -> Result<Vec<PathBuf>> {
    must_exist(data)?;
    // A bare engine has its files here, a server's directory only stores.
    if ["CURRENT", "tables", "log"].iter().any(|name| data.join(name).exists()) {
        return Ok(vec![data.to_owned()]);
    }
    let stores = block_on(atoll_kv::identity::stores(&env()?, data));
    stores.map_err(|e| Failure::of_data(data, e))
}

pub(crate) fn env() -> Result<Env> {
    atoll_env::os::env().map_err(|e| {
        Failure::new(format!("the kernel's random generator cannot be read: {e}; try again"))
    })
}

/// Reads everything and tells all that is wrong.
pub(crate) fn verify(data: &Path, out: &mut dyn Write) -> Result<()> {
    let mut sound = true;
    for store in stores(data)? {
        let report = atoll_lsm::verify(&store, &mut progress);
        let report = report.map_err(|e| Failure::of_data(data, e))?;
        writeln!(out, "{}: {report}", store.display()).map_err(Failure::output)?;
        for problem in &report.problems {
            writeln!(out, "  {problem}").map_err(Failure::output)?;
        }
        sound &= report.is_sound();
    }
    if sound {
        return Ok(());
    }
    out.flush().map_err(Failure::output)?;
    Err(Failure::new(format!(
        "{} is damaged: restore the files named above from a backup, or see what `atoll repair \
         --help` can do without one",
        data.display()
    )))
}

/// Merges all tables into the last level, which drops what is dead.
pub(crate) fn compact(data: &Path, out: &mut dyn Write) -> Result<()> {
    let failed = |e| Failure::of_data(data, e);
    let env = env()?;
    for store in stores(data)? {
        let (before, after) = block_on(async {
            let options = OpenOptions { options: Options::new(env.clone()) };
            let (mut driver, tree) = driven::open(&store, options).await?;
            driver.attend(tree.flush()).await?;
            let before = Size(tree.stats().disk_bytes());
            let compacted = driver.attend(tree.compact()).await;
            let after = Size(tree.stats().disk_bytes());
            compacted.and(driver.close().await)?;
            Ok((before, after))
        })
        .map_err(failed)?;
        writeln!(out, "{}: {before} of tables and values became {after}", store.display())
            .map_err(Failure::output)?;
    }
    Ok(())
}

/// Repairs what `options` allow and tells what that cost.
pub(crate) fn repair(data: &Path, options: RepairOptions, out: &mut dyn Write) -> Result<()> {
    for store in stores(data)? {
        repair_store(data, &store, options, out)?;
    }
    Ok(())
}

fn repair_store(
    data: &Path,
    store: &Path,
    options: RepairOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let report = atoll_lsm::repair(store, options, &mut progress);
    let report = report.map_err(|e| Failure::of_data(data, e))?;
    let mut lines: Vec<String> = Vec::new();
    for table in &report.released {
        lines.push(format!("{} verifies again and serves again", table.display()));
    }
    for table in &report.dropped {
        let kept = match &table.kept {
            Some(file) => format!("its file is now {}", file.display()),
            None => "its file was missing".to_owned(),
        };
        lines.push(format!(
            "dropped a table of {} records, {kept}: {}",
            table.records, table.problem
        ));
    }
    for problem in &report.stood_in {
        lines.push(format!(
            "filled up a value file, and lost the values that had stood there: {problem}"
        ));
    }
    if let Some(cut) = &report.cut {
        lines.push(match &cut.problem {
            None => "the log is sound and was left as it is".to_owned(),
            Some(problem) => format!(
                "cut the log at position {}, and with it {} good frames of {}: {problem}",
                cut.end,
                cut.dropped_frames,
                Size(cut.dropped_bytes)
            ),
        });
    }
    if lines.is_empty() {
        lines.push("nothing was repaired".to_owned());
    }
    for line in lines {
        writeln!(out, "{line}").map_err(Failure::output)?;
    }
    let Some(first) = report.remaining.first() else { return Ok(()) };
    out.flush().map_err(Failure::output)?;
    Err(Failure::new(format!(
        "{} files do not verify and were left as they are, the first: {first}; restore them, or \
         give tables up with --drop-corrupt-tables and missing value files with --drop-lost-values \
         (a single value that does not verify is served to nobody, and goes when its key is written \
         again or deleted)",
        report.remaining.len()
    )))
}

/// Shows where a long reading is, to somebody who watches.
fn progress(line: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = writeln!(err, "{line}");
    }
}

fn must_exist(data: &Path) -> Result<()> {
    // A damaged directory may have lost any of its files; one that is left makes it ours.
    if ["ATOLL", "store-0", "CURRENT", "tables", "log"].iter().any(|name| data.join(name).exists())
    {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} holds no AtollDB data; name the directory of a stopped server with --data",
        data.display()
    )))
}
