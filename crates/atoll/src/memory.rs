//! How much memory this process may use: the machine's RAM, or less where a cgroup says so.
//!
//! A container's limit is what kills the process, and the machine's RAM is many times that, so the
//! default memory budget must see cgroups. Version 2 keeps one tree with `memory.max`, version 1 a
//! tree per controller with `memory.limit_in_bytes`; in both, a limit on any ancestor holds, and
//! inside a container the group's own path may not exist below the mount, only its root does.

use std::path::{Path, PathBuf};

use crate::value::Size;

/// The budget where the machine does not tell its memory.
const UNKNOWN_RAM: u64 = 1 << 30;

/// Returns the default memory budget: a quarter of what this process may use.
pub(crate) fn default_budget() -> Size {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    Size((available(&read) / 4).max(1))
}

/// Returns the bytes this process may use. `read` returns a file's text.
fn available(read: &dyn Fn(&Path) -> Option<String>) -> u64 {
    let ram = ram(read).unwrap_or(UNKNOWN_RAM);
    cgroup_limit(read).map_or(ram, |limit| ram.min(limit))
}

fn ram(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let meminfo = read(Path::new("/proc/meminfo"))?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns the smallest limit of this process's group and its ancestors.
fn cgroup_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mut smallest: Option<u64> = None;
    for line in groups.lines() {
        // `0::/path` in version 2, `5:memory,other:/path` in version 1.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for ancestor in Path::new(group.trim_start_matches('/')).ancestors() {
            let path = PathBuf::from(mount).join(ancestor).join(file);
            // `max` in version 2 is no limit; version 1 says so with a number beyond any RAM.
            let limit = read(&path).and_then(|text| text.trim().parse::<u64>().ok());
            smallest = match (smallest, limit) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is available on a machine with these files.
    fn with(files: &[(&str, &str)]) -> u64 {
        let read = |path: &Path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        };
        available(&read)
    }

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal:       16384 kB\nMemFree:            1 kB\n");

    #[test]
    fn without_a_limit_it_is_the_ram() {
        assert_eq!(with(&[MEMINFO]), 16 << 20);
        assert_eq!(
            with(&[
                MEMINFO,
                ("/proc/self/cgroup", "0::/user.slice\n"),
                ("/sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ]),
            16 << 20
        );
        assert_eq!(with(&[]), UNKNOWN_RAM);
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_holds() {
        assert_eq!(
            with(&[
                MEMINFO,
                ("/proc/self/cgroup", "0::/a/b\n"),
                ("/sys/fs/cgroup/a/b/memory.max", "9000000\n"),
                ("/sys/fs/cgroup/a/memory.max", "8000000\n"),
            ]),
            8_000_000
        );
    }

    #[test]
    fn version_1_and_a_container_that_sees_only_its_root_are_understood() {
        assert_eq!(
            with(&[
                MEMINFO,
                ("/proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
            ]),
            5_000_000
        );
        let none = "9223372036854771712\n";
        assert_eq!(
            with(&[
                MEMINFO,
                ("/proc/self/cgroup", "4:memory:/\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", none),
            ]),
            16 << 20
        );
    }
}
