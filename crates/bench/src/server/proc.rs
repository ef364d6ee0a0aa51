//! What the kernel says about a server, and about the machine it runs on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::fdatasync;

use crate::Failure;

/// Returns the processor time that all threads of a process have used, in seconds, with that of its
/// children that have ended (Redis rewrites its log in one). The kernel counts in hundredths.
pub fn cpu_s(id: u32) -> Result<f64, Failure> {
    let stat = read(&format!("/proc/{id}/stat"))?;
    let ticks = cpu_ticks(&stat).ok_or("/proc/PID/stat is not as expected")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Adds up utime, stime, cutime and cstime: the fields 14 to 17.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is a name in brackets, which may have spaces and brackets of its own.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().skip(11).take(4).collect();
    if fields.len() < 4 {
        return None;
    }
    fields.iter().map(|field| field.parse::<u64>().ok()).sum()
}

/// Returns the resident set of a process, in bytes.
pub fn resident(id: u32) -> Result<u64, Failure> {
    let status = read(&format!("/proc/{id}/status"))?;
    Ok(resident_kib(&status).ok_or("/proc/PID/status is not as expected")? << 10)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The conditions of a run, for the head of its table: processors, how busy they are, and what a
/// sync of the disk costs.
pub fn conditions(dir: &Path) -> Result<String, Failure> {
    let processors = std::thread::available_parallelism()?;
    let load = load_average()?;
    let sync = match median_sync(dir)? {
        Some(time) => format!("fdatasync of 4 KiB {:.2} ms", time.as_secs_f64() * 1e3),
        None => "no disk below the data: synced means nothing there, choose --dir".into(),
    };
    Ok(format!("{processors} processors, load average {load} before, {sync}"))
}

/// Returns how many threads ran or wanted to, on average over the last minute.
pub fn load_average() -> Result<String, Failure> {
    let load = read("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}

/// Measures what a server's log pays; `None` if the directory is in memory.
fn median_sync(dir: &Path) -> Result<Option<Duration>, Failure> {
    /// The number by which the kernel knows tmpfs.
    const TMPFS: u64 = 0x0102_1994;
    if rustix::fs::statfs(dir)?.f_type as u64 == TMPFS {
        return Ok(None);
    }
    let path = dir.join("sync");
    let file = fs::File::create(&path)?;
    let mut times = Vec::new();
    for i in 0..51 {
        let started = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[i; 4096], 0)?;
        fdatasync(&file)?;
        times.push(started.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied())
}

fn read(file: &str) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|e| format!("{file}: {e}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "12 (a) (b c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 5 0 77 0";
        assert_eq!(cpu_ticks(stat), Some(127));
        assert_eq!(cpu_ticks("12 (a) S 1 2"), None);
        assert!(cpu_s(std::process::id()).is_ok());
    }

    #[test]
    fn the_resident_set_is_that_of_the_moment() {
        assert_eq!(resident_kib("VmHWM:\t 900 kB\nVmRSS:\t  512 kB\n"), Some(512));
        assert!(resident(std::process::id()).is_ok_and(|bytes| bytes > 100 << 10));
    }
}
