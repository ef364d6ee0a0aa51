//! What the kernel says about a process and a directory.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::time::{ClockId, clock_gettime};

/// Returns the bytes this process has caused to be written to storage. Pages that it made dirty and
/// that were never written, because their file was removed before, do not count.
pub fn bytes_written() -> Option<u64> {
    let io = Io::of_process()?;
    Some(io.field("write_bytes:")?.saturating_sub(io.field("cancelled_write_bytes:")?))
}

/// Returns the bytes this process has read from files: by calls, from the page cache too, or by page
/// faults and rings, from storage only. Which of them an engine uses is its own affair, so the
/// larger one counts.
pub fn bytes_read() -> Option<u64> {
    let io = Io::of_process()?;
    Some(io.field("rchar:")?.max(io.field("read_bytes:")?))
}

/// Returns the time that all threads of this process have spent on a processor, in the kernel too.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The kernel's account of a process's transfers.
struct Io(String);

impl Io {
    fn of_process() -> Option<Io> {
        fs::read_to_string("/proc/self/io").ok().map(Io)
    }

    fn field(&self, name: &str) -> Option<u64> {
        self.0.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    }
}

/// Returns this process's largest resident set so far, in bytes.
pub fn peak_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Returns this process's resident set now, in bytes.
pub fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Returns how many page faults this process has had, those that needed no storage.
pub fn page_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; the state follows, and seven numbers on, the faults.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// Returns the bytes of storage that the files below a directory take.
pub fn bytes_on_disk(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    visit(dir, &mut |file| {
        bytes += file.metadata()?.blocks() * 512;
        Ok(())
    })?;
    Ok(bytes)
}

/// Writes back the files below a directory and drops them from the page cache, so that the next
/// process starts cold.
pub fn drop_page_cache(dir: &Path) -> std::io::Result<()> {
    visit(dir, &mut |path| {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    })
}

fn visit(dir: &Path, each: &mut dyn FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { visit(&path, each)? } else { each(&path)? }
    }
    Ok(())
}
