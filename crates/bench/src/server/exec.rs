//! The step between this program and a server: becomes the server, tied to its parent.
//!
//! ```text
//!   atoll-bench --spawn--> atoll-bench server-exec --exec--> redis-server     (one process id)
//!                          joins the cgroup, asks to be killed when the parent ends
//! ```
//!
//! Both must be done in the child before the server begins, and neither can be had from the
//! standard library without unsafe code in the forked child.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::Failure;

/// What to become.
#[derive(clap::Args)]
pub struct Args {
    /// Process that this one must not outlive.
    #[arg(long)]
    parent: i32,
    /// Where to write the process's id before anything else.
    #[arg(long)]
    join: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

/// Becomes the command; returns only if that fails.
pub fn run(args: Args) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the kernel was asked to tell.
    if getppid() != Pid::from_raw(args.parent) {
        return Err("the process that started this one is gone".into());
    }
    if let Some(processes) = &args.join {
        fs::write(processes, std::process::id().to_string())
            .map_err(|e| format!("joining the cgroup by {}: {e}", processes.display()))?;
    }
    let (program, rest) = args.command.split_first().ok_or("no program is named")?;
    let e = Command::new(program).args(rest).exec();
    Err(format!("{}: {e}", program.display()).into())
}

/// Returns the command that becomes `program`, to which its arguments are to be added.
pub fn command(program: &std::path::Path, join: Option<PathBuf>) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["server-exec", "--parent", &std::process::id().to_string()]);
    if let Some(join) = join {
        command.arg("--join").arg(join);
    }
    command.arg("--").arg(program).process_group(0);
    // A server is configured by what this program says, not by what its user has set for another.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ATOLL_")) {
            command.env_remove(name);
        }
    }
    Ok(command)
}
