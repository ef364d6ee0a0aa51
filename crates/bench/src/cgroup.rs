//! A memory cgroup of our own, below the one this process is in, in either version.
//!
//! Version 1 has a hierarchy for the memory controller; version 2 has one for all, in which a group
//! that has processes of its own cannot hand the controller down (unless it is the root). There the
//! group is made beside ours instead, which needs a delegated parent, such as
//! `systemd-run --user --scope -p Delegate=yes` gives.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the names of our groups begin with; a process id and a number follow.
const PREFIX: &str = "atoll-bench-";

/// A group that is removed when it is dropped. Its processes must have ended by then.
pub struct MemoryCgroup {
    dir: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryCgroup {
    /// Makes a group that may use `limit` bytes of memory, page cache included. Fails with the
    /// reason if this machine or user has no such thing.
    pub fn create(limit: u64) -> Result<MemoryCgroup, String> {
        let mounts = read("/proc/self/mountinfo")?;
        let memberships = read("/proc/self/cgroup")?;
        let mut reasons = Vec::new();
        for (version, parent) in parents(&mounts, &memberships) {
            match MemoryCgroup::below(version, &parent, limit) {
                Ok(group) => return Ok(group),
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            reasons.push("no memory controller is mounted".into());
        }
        Err(reasons.join("; "))
    }

    fn below(version: Version, parent: &Path, limit: u64) -> Result<MemoryCgroup, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        remove_abandoned(parent);
        let dir = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        if version == Version::Two {
            // Fails if it is handed down already or cannot be; the limit below tells which.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        fs::create_dir(&dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
        let group = MemoryCgroup { dir, version };
        let file = match version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let file = group.dir.join(file);
        if !file.exists() {
            return Err(format!("{} has no memory controller", parent.display()));
        }
        fs::write(&file, limit.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(group)
    }

    /// Returns the file a process writes its id to in order to join.
    pub fn processes(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// Returns whether a process was killed because the group had no memory left.
    pub fn has_killed(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        fs::read_to_string(self.dir.join(file)).is_ok_and(|text| {
            text.lines()
                .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        })
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if self.version == Version::One {
            // Gives back the page cache, which else would be charged to the parent for a while.
            let _ = fs::write(self.dir.join("memory.force_empty"), "0");
        }
        // The kernel takes a moment to notice that the last process is gone.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("atoll-bench: the cgroup {} could not be removed", self.dir.display());
    }
}

/// Removes the groups of benchmarks that were killed. They are empty, for a child dies with its
/// parent; the kernel refuses to remove one that is not.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the directories a group may be made in, best first.
fn parents(mounts: &str, memberships: &str) -> Vec<(Version, PathBuf)> {
    let mut parents = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let (version, controller) = match mount.kind {
            "cgroup" if mount.options.split(',').any(|o| o == "memory") => (Version::One, "memory"),
            "cgroup2" => (Version::Two, ""),
            _ => continue,
        };
        let Some(path) = membership(memberships, controller) else { continue };
        // A container sees only the part of the hierarchy below the mount's root.
        let below = path.strip_prefix(mount.root).unwrap_or(path).trim_start_matches('/');
        let own = Path::new(mount.point).join(below);
        parents.push((version, own.clone()));
        if let (Version::Two, false, Some(beside)) = (version, below.is_empty(), own.parent()) {
            parents.push((version, beside.to_owned()));
        }
    }
    parents
}

/// Returns this process's path in the hierarchy of a controller (version 2 has the empty name).
fn membership<'a>(memberships: &'a str, controller: &str) -> Option<&'a str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers.split(',').any(|c| c == controller).then_some(path)
    })
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    /// Parses a line of mountinfo: `id parent device root point options ... - kind source options`.
    fn parse(line: &str) -> Option<Mount<'_>> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        Some(Mount {
            root: place.next()?,
            point: place.next()?,
            kind: kind.next()?,
            options: kind.nth(1)?,
        })
    }
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_in_both_versions() {
        let one = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                   35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
        let two =
            "30 24 0:26 /docker/1f /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        for (mounts, memberships, expected) in [
            (one, "4:memory:/a/b\n1:cpu:/\n", vec!["/sys/fs/cgroup/memory/a/b"]),
            (one, "4:cpu:/a\n", vec![]),
            (two, "0::/docker/1f/x\n", vec!["/sys/fs/cgroup/x", "/sys/fs/cgroup"]),
            (two, "0::/docker/1f\n", vec!["/sys/fs/cgroup"]),
            ("not a mount\n", "0::/\n", vec![]),
        ] {
            let parents: Vec<_> = parents(mounts, memberships).into_iter().map(|p| p.1).collect();
            assert_eq!(parents, expected.into_iter().map(PathBuf::from).collect::<Vec<_>>());
        }
    }
}
