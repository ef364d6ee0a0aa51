//! The program: one binary that runs the database and works with it.
//!
//! ```text
//!   cli       the command line as data       value, memory, config   what its settings mean
//!   start     the server                     pages    what its HTTP port shows
//!   ask       ping get set scan stats  --+
//!   transfer  export import                --+
//!   bench     the load generator       --+-- client   one RESP connection
//!   offline   verify compact repair          failure  a sentence and an exit code
//!   backup    generations, and back          allocator which one was built in
//! ```
//!
//! The program composes and says things; it decides nothing about data. What goes wrong ends as one
//! sentence on standard error that says what to do next, and as the exit code: 1 for a command that
//! failed, 2 for a command line that is wrong.

mod allocator;
mod ask;
mod backup;
mod bench;
mod cli;
mod client;
mod config;
mod failure;
mod log;
mod memory;
mod offline;
mod pages;
mod shards;
mod start;
mod transfer;
mod value;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use atoll_lsm::RepairOptions;
use atoll_lsm::backup::Mode;
use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command, Reshard};
use failure::{Failure, Result};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli.command) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // One core: a client has one thing to do, a server owns its store.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| {
        Failure::new(format!("the runtime cannot start: {e}; raise the limit of open files"))
    })?;
    let mut out = BufWriter::new(io::stdout().lock());
    runtime.block_on(perform(command, &mut out))?;
    out.flush().map_err(Failure::output)
}

async fn perform(command: Command, out: &mut dyn Write) -> Result<()> {
    match command {
        Command::Start(args) => start::run(args, out).await,
        Command::Ping { server } => ask::ping(&server, out).await,
        Command::Get { server, key } => ask::get(&server, &key, out).await,
        Command::Set { server, key, value, ttl } => {
            ask::set(&server, &key, &value, ttl.map(|ttl| ttl.0), out).await
        }
        Command::Scan { server, pattern, limit, values } => {
            ask::scan(&server, &pattern, limit.map(|limit| limit.0), values, out).await
        }
        Command::Stats { metrics: true, http, .. } => ask::metrics(http.0, out).await,
        Command::Stats { server, section, .. } => {
            ask::stats(&server, section.as_deref(), out).await
        }
        Command::Shards { data: Some(data), .. } => shards::list_stopped(&data, out).await,
        Command::Shards { http, .. } => shards::list(&http, out).await,
        Command::Reshard { how: Reshard::Double { http } } => shards::double(&http, out).await,
        Command::Bench(args) => bench::run(&args, out).await,
        Command::Export { server, pattern, to } => {
            transfer::export(&server, &pattern, to.as_deref(), out).await
        }
        Command::Import { server, from } => transfer::import(&server, &from).await,
        // These block: there is nothing else to do meanwhile.
        Command::Verify { data } => offline::verify(&data.dir, out),
        Command::Compact { data } => offline::compact(&data.dir, out),
        Command::Backup { data, to, whole, trust } => {
            let mode = match (whole, trust) {
                (true, _) => Mode::Whole,
                (false, true) => Mode::Trusting,
                (false, false) => Mode::Incremental,
            };
            backup::take(&data.dir, &to, mode, out)
        }
        Command::Restore { from, generation, to } => {
            backup::restore(&from, generation.map(|number| number.0), &to, out)
        }
        Command::Backups { from, verify, keep } => {
            backup::list(&from, verify, keep.map(|keep| keep.0), out)
        }
        Command::Repair { data, cut_log, drop_corrupt_tables, drop_lost_values } => {
            offline::repair(
                &data.dir,
                RepairOptions { cut_log, drop_corrupt_tables, drop_lost_values },
                out,
            )
        }
    }
}

/// Answers a command line that asks for help or is wrong.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nothing can be done about a closed output here.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            complain(&usage_sentence(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// Makes one sentence of clap's message: its first paragraph, and where to read on.
fn usage_sentence(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let sentence = words.join(" ");
    let what = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    // clap shows the usage of the subcommand that was meant, if it got that far.
    let subcommand = message
        .split_once("Usage: atoll ")
        .and_then(|(_, usage)| usage.split_whitespace().next())
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .map(|word| format!(" {word}"));
    format!("{what}; see `atoll{} --help`", subcommand.unwrap_or_default())
}

/// Says a sentence on standard error; a closed one leaves the exit code to speak.
fn complain(sentence: &str) {
    let _ = writeln!(io::stderr(), "atoll: {sentence}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(words: &[&str]) -> String {
        let error = Cli::try_parse_from(["atoll"].iter().chain(words)).unwrap_err();
        usage_sentence(&error.to_string())
    }

    #[test]
    fn a_wrong_command_line_is_one_sentence_that_names_the_help() {
        for (words, parts) in [
            (
                &["start", "--threads", "2"][..],
                ["unexpected argument '--threads' found", "start --help"],
            ),
            (&["start", "--memory", "x"], ["invalid value 'x' for '--memory <SIZE>'", "--help"]),
            (&["start", "--durability", "y"], ["choose synced, interval", "--help"]),
            (&["get"], ["required arguments were not provided: <KEY>", "`atoll get --help`"]),
            (&["sing"], ["unrecognized subcommand 'sing'", "`atoll --help`"]),
            (&[], ["requires a subcommand", "`atoll --help`"]),
        ] {
            let sentence = sentence(words);
            assert!(!sentence.contains('\n'), "{sentence}");
            for part in parts {
                assert!(sentence.contains(part), "{words:?}: {sentence}");
            }
        }
    }
}
