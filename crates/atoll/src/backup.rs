//! Backups of a stopped server's directory, and back: `atoll backup`, `atoll restore`, `atoll backups`.
//!
//! All stores of a server are taken as they lie there, under their locks: what a stopped or killed
//! process left is one moment of all of them. A bare engine's directory is its own only store.

use std::io::{IsTerminal, Write};
use std::path::Path;

use atoll_env::block_on;
use atoll_lsm::backup::{Backups, Generation, Image, Mode, Progress, Source};

use crate::failure::{Failure, Result};
use crate::offline::{env, stores};
use crate::value::Size;

/// Takes a backup of the stopped directory `data`.
pub(crate) fn take(data: &Path, to: &Path, mode: Mode, out: &mut dyn Write) -> Result<()> {
    let stores = stores(data)?;
    let env = env()?;
    let report = block_on(async {
        let mut source = Source::new();
        // The directory's own lock comes first, as a server takes it.
        let _lock = match &stores[..] {
            [only] if only == data => None,
            _ => Some(atoll_kv::identity::lock_stopped(&env, data).await?),
        };
        for store in &stores {
            let dir = match store.strip_prefix(data) {
                Ok(dir) => dir.to_string_lossy().into_owned(),
                Err(_) => String::new(),
            };
            source = source.image(dir, Image::of_stopped(&env, store).await?);
        }
        if stores != [data] {
            source = source.file("ATOLL", atoll_kv::identity::bytes(&env, data).await?);
        }
        Backups::in_env(&env, to).store_async(source, mode, &mut show()).await
    });
    let report = report.map_err(|e| Failure::of_data(data, e))?;
    for healed in &report.healed {
        writeln!(out, "copied again: {healed}").map_err(Failure::output)?;
    }
    writeln!(out, "{}", told(&report.generation)).map_err(Failure::output)
}

/// Restores a generation, the newest if none is named, to the directory `to`.
pub(crate) fn restore(
    from: &Path,
    number: Option<u64>,
    to: &Path,
    out: &mut dyn Write,
) -> Result<()> {
    let backups = backups(from)?;
    let number = backups.restore(number, to, &mut show()).map_err(said)?;
    writeln!(out, "generation {number} is restored to {}", to.display()).map_err(Failure::output)
}

/// Lists generations, after verifying or pruning them if that is asked for.
pub(crate) fn list(
    from: &Path,
    verify: bool,
    keep: Option<u64>,
    out: &mut dyn Write,
) -> Result<()> {
    let backups = backups(from)?;
    if let Some(keep) = keep {
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let (generations, files) = backups.prune(keep).map_err(said)?;
        writeln!(out, "{generations} generations and {files} files are removed")
            .map_err(Failure::output)?;
    }
    if verify {
        let found = backups.verify(&mut show()).map_err(said)?;
        writeln!(out, "{found}").map_err(Failure::output)?;
        for (problem, generations) in &found.problems {
            let generations: Vec<String> = generations.iter().map(u64::to_string).collect();
            let of = generations.join(", ");
            writeln!(out, "  {problem}; generations {of}").map_err(Failure::output)?;
        }
        if !found.is_sound() {
            out.flush().map_err(Failure::output)?;
            return Err(Failure::new(format!(
                "{} is damaged: the next `atoll backup` copies again what the data still has",
                from.display()
            )));
        }
    }
    for generation in backups.generations().map_err(said)? {
        writeln!(out, "{}", told(&generation)).map_err(Failure::output)?;
    }
    Ok(())
}

fn backups(from: &Path) -> Result<Backups> {
    Ok(Backups::in_env(&env()?, from))
}

fn said(error: atoll_lsm::Error) -> Failure {
    Failure::new(error.to_string())
}

fn told(generation: &Generation) -> String {
    let Generation { number, made, files, bytes, new_files, new_bytes } = *generation;
    format!(
        "generation {number}, {}: {files} files of {}, copied for it {new_files} of {}",
        moment(made / 1000),
        Size(bytes),
        Size(new_bytes)
    )
}

/// Writes down a moment in seconds since 1970, as `2026-11-26 18:04:00 UTC`.
fn moment(seconds: u64) -> String {
    // Years are taken to begin in March, so that the day that comes and goes is their last.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Shows how far it is, to somebody who watches.
fn show() -> impl FnMut(Progress<'_>) {
    let watched = std::io::stderr().is_terminal();
    let mut shown = u64::MAX;
    move |progress| {
        let percent = (progress.done * 100).checked_div(progress.total).unwrap_or(100);
        if watched && percent != shown {
            shown = percent;
            let end = if progress.done == progress.total { "\n" } else { "" };
            let _ = write!(std::io::stderr(), "\r{percent:3}% of {}{end}", Size(progress.total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_704_067_199, "2023-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(seconds), expected);
        }
    }
}
