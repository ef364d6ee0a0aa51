//! The names of a simulated disk: directories as they are, and as a power cut would leave them.
//!
//! A directory has its current entries and its durable ones. Between the two lies a log of changes
//! that no `sync_dir` has covered. At a power cut each change is kept or dropped on its own, in the
//! order of the log (a rename is one change of two entries, so it happens or not); files without a
//! name are then gone. A file's content is durable or not independently of its name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::io::Errno;

use crate::disk::DirEntry;
use crate::random::Prng;
use crate::sim::CrashMode;
use crate::sim::pages::Content;

pub(super) type InodeId = u64;
const ROOT: InodeId = 0;

/// A file system: names and contents, volatile and durable. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tree {
    inodes: BTreeMap<InodeId, Arc<Inode>>,
    next_inode: InodeId,
    /// Changes of entries that are not durable, oldest first.
    pending: Vec<Change>,
    next_group: u64,
}

#[derive(Clone)]
enum Inode {
    Dir { current: BTreeMap<String, InodeId>, durable: BTreeMap<String, InodeId> },
    File(Content),
}

/// An entry was set (or removed, if `to` is `None`). Changes of one group share their fate.
#[derive(Clone)]
struct Change {
    group: u64,
    dir: InodeId,
    name: String,
    to: Option<InodeId>,
}

impl Tree {
    pub(super) fn new() -> Tree {
        let mut tree =
            Tree { inodes: BTreeMap::new(), next_inode: ROOT, pending: Vec::new(), next_group: 0 };
        tree.add(empty_dir());
        tree
    }

    /// Returns the inode of a path.
    pub(super) fn find(&self, path: &Path) -> io::Result<InodeId> {
        let mut inode = ROOT;
        for name in names(path)? {
            inode = *self.entries(inode)?.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(inode)
    }

    /// Returns the inode of a file.
    pub(super) fn find_file(&self, path: &Path) -> io::Result<InodeId> {
        let inode = self.find(path)?;
        self.content(inode)?;
        Ok(inode)
    }

    /// Creates an empty file under a free name.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        let (dir, name) = self.parent(path)?;
        if self.entries(dir)?.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        let inode = self.add(Inode::File(Content::default()));
        let group = self.new_group();
        self.set(group, dir, name, Some(inode));
        Ok(inode)
    }

    /// Creates a directory and its missing parents.
    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = ROOT;
        let names: Vec<&str> = names(path)?.collect();
        for (i, name) in names.iter().enumerate() {
            let next = self.entries(dir)?.get(*name).copied();
            dir = match next {
                // As mkdir says of a name that is taken by a file.
                Some(inode) if i + 1 == names.len() && self.entries(inode).is_err() => {
                    return Err(Errno::EXIST.into());
                }
                Some(inode) => inode,
                None => {
                    let inode = self.add(empty_dir());
                    let group = self.new_group();
                    self.set(group, dir, name, Some(inode));
                    inode
                }
            };
        }
        Ok(())
    }

    /// Renames a file, replacing a file.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        // In the order of Linux: both parents, then the file.
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let inode = self.find(from)?;
        let target = self.entries(to_dir)?.get(to_name).copied();
        if self.entries(inode).is_ok() {
            let message = "the simulated disk renames files, not directories";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        if target.is_some_and(|target| self.entries(target).is_ok()) {
            let holds_the_file = from.starts_with(to);
            return Err(if holds_the_file { Errno::NOTEMPTY } else { Errno::ISDIR }.into());
        }
        if target == Some(inode) {
            return Ok(());
        }
        let group = self.new_group();
        self.set(group, from_dir, from_name, None);
        self.set(group, to_dir, to_name, Some(inode));
        Ok(())
    }

    /// Gives a file one more name, which is free.
    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let (dir, name) = self.parent(to)?;
        if self.entries(dir)?.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        if self.entries(inode).is_ok() {
            return Err(Errno::PERM.into());
        }
        let group = self.new_group();
        self.set(group, dir, name, Some(inode));
        Ok(())
    }

    /// Removes a file's name.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find_file(path)?;
        let (dir, name) = self.parent(path)?;
        let group = self.new_group();
        self.set(group, dir, name, None);
        Ok(())
    }

    /// Makes the entries of a directory durable.
    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.find(path)?;
        self.entries(dir)?;
        // Of a rename between directories the half in this one becomes durable.
        self.pending.retain(|change| change.dir != dir);
        let Inode::Dir { current, durable } = self.inode_mut(dir) else {
            unreachable!("it has entries");
        };
        durable.clone_from(current);
        Ok(())
    }

    /// Lists a directory, sorted by name.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let entries = self.entries(self.find(path)?)?;
        Ok(entries
            .iter()
            .map(|(name, inode)| match &*self.inodes[inode] {
                Inode::Dir { .. } => DirEntry { name: name.clone(), is_dir: true, len: 0 },
                Inode::File(content) => {
                    DirEntry { name: name.clone(), is_dir: false, len: content.len() }
                }
            })
            .collect())
    }

    /// Returns the paths of all files, sorted.
    pub(super) fn all_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        self.collect_files(ROOT, "", &mut files);
        files.sort();
        files
    }

    /// Returns a file's content.
    pub(super) fn content(&self, inode: InodeId) -> io::Result<&Content> {
        match self.inodes.get(&inode).map(|inode| &**inode) {
            Some(Inode::File(content)) => Ok(content),
            Some(Inode::Dir { .. }) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// Returns a file's content for changing it.
    pub(super) fn content_mut(&mut self, inode: InodeId) -> io::Result<&mut Content> {
        match self.inodes.get_mut(&inode).map(Arc::make_mut) {
            Some(Inode::File(content)) => Ok(content),
            Some(Inode::Dir { .. }) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// Puts a file with its directories and content in place, all of it durable.
    pub(super) fn put_durable(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.create_dir(parent)?;
        }
        let inode = match self.find_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.create(path)?,
            found => found?,
        };
        *self.content_mut(inode)? = Content::durable(bytes);
        for dir in path.ancestors().skip(1) {
            self.sync_dir(dir)?;
        }
        Ok(())
    }

    /// Returns the inodes of all files that have a name.
    pub(super) fn named_files(&self) -> Vec<InodeId> {
        let is_file = |inode: &&InodeId| matches!(&*self.inodes[*inode], Inode::File(_));
        self.dirs().flat_map(|(current, _)| current.values()).filter(is_file).copied().collect()
    }

    /// Bytes of the medium in use by the files that have a name or are in `open`.
    pub(super) fn space(&self, open: impl Iterator<Item = InodeId>) -> u64 {
        let mut counted: BTreeSet<InodeId> = self.named_files().into_iter().collect();
        counted.extend(open);
        counted.iter().filter_map(|inode| self.content(*inode).ok()).map(Content::space).sum()
    }

    /// Forgets files that no name, durable name, pending change or `open` handle can reach.
    pub(super) fn collect_garbage(&mut self, open: impl Iterator<Item = InodeId>) {
        let mut live: BTreeSet<InodeId> = open.collect();
        live.insert(ROOT);
        live.extend(self.pending.iter().filter_map(|change| change.to));
        for (current, durable) in self.dirs() {
            live.extend(current.values().chain(durable.values()));
        }
        self.inodes.retain(|inode, _| live.contains(inode));
    }

    /// Leaves what the medium holds after a power cut.
    pub(super) fn power_cut(&mut self, mode: CrashMode, torn: f64, prng: &mut Prng) {
        if mode == CrashMode::KeepAll {
            // Only the process died: names that are not durable yet are still in the kernel.
            return;
        }
        // As with the sectors of a file: sometimes nearly all, sometimes nearly none.
        let keep = [0.05, 0.5, 0.95][prng.index(3)];
        let mut fate = (0, false);
        for change in std::mem::take(&mut self.pending) {
            if fate.0 != change.group {
                let kept = match mode {
                    CrashMode::KeepAll | CrashMode::DropAll => false,
                    CrashMode::Random => prng.chance(keep),
                };
                fate = (change.group, kept);
            }
            if fate.1
                && let Inode::Dir { durable, .. } = self.inode_mut(change.dir)
            {
                match change.to {
                    Some(inode) => _ = durable.insert(change.name, inode),
                    None => _ = durable.remove(&change.name),
                }
            }
        }
        for inode in self.inodes.values_mut() {
            let clean = match &**inode {
                Inode::Dir { current, durable } => current == durable,
                Inode::File(content) => content.is_durable(),
            };
            if clean {
                continue; // and stays shared with the snapshots
            }
            match Arc::make_mut(inode) {
                Inode::Dir { current, durable } => current.clone_from(durable),
                Inode::File(content) => content.power_cut(mode, torn, prng),
            }
        }
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        let mut live = BTreeSet::from([ROOT]);
        let mut todo = vec![ROOT];
        while let Some(inode) = todo.pop() {
            if let Inode::Dir { current, .. } = &*self.inodes[&inode] {
                todo.extend(current.values().copied().filter(|inode| live.insert(*inode)));
            }
        }
        self.inodes.retain(|inode, _| live.contains(inode));
    }

    fn add(&mut self, inode: Inode) -> InodeId {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Arc::new(inode));
        id
    }

    fn new_group(&mut self) -> u64 {
        self.next_group += 1;
        self.next_group
    }

    /// Changes an entry and notes the change.
    fn set(&mut self, group: u64, dir: InodeId, name: &str, to: Option<InodeId>) {
        if let Inode::Dir { current, .. } = self.inode_mut(dir) {
            match to {
                Some(inode) => _ = current.insert(name.to_owned(), inode),
                None => _ = current.remove(name),
            }
        }
        self.pending.push(Change { group, dir, name: name.to_owned(), to });
    }

    fn inode_mut(&mut self, inode: InodeId) -> &mut Inode {
        let inode = self.inodes.get_mut(&inode).expect("invariant: directories are never removed");
        Arc::make_mut(inode)
    }

    fn entries(&self, inode: InodeId) -> io::Result<&BTreeMap<String, InodeId>> {
        match self.inodes.get(&inode).map(|inode| &**inode) {
            Some(Inode::Dir { current, .. }) => Ok(current),
            Some(Inode::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    fn parent<'a>(&self, path: &'a Path) -> io::Result<(InodeId, &'a str)> {
        let names: Vec<&str> = names(path)?.collect();
        let (name, dirs) = names.split_last().ok_or(Errno::ISDIR)?;
        let mut dir = ROOT;
        for name in dirs {
            dir = *self.entries(dir)?.get(*name).ok_or(Errno::NOENT)?;
        }
        self.entries(dir)?;
        Ok((dir, name))
    }

    fn dirs(
        &self,
    ) -> impl Iterator<Item = (&BTreeMap<String, InodeId>, &BTreeMap<String, InodeId>)> {
        self.inodes.values().filter_map(|inode| match &**inode {
            Inode::Dir { current, durable } => Some((current, durable)),
            Inode::File(_) => None,
        })
    }

    fn collect_files(&self, dir: InodeId, prefix: &str, files: &mut Vec<String>) {
        let Inode::Dir { current, .. } = &*self.inodes[&dir] else { return };
        for (name, inode) in current {
            let path = format!("{prefix}/{name}");
            match &*self.inodes[inode] {
                Inode::Dir { .. } => self.collect_files(*inode, &path, files),
                Inode::File(_) => files.push(path),
            }
        }
    }
}

fn empty_dir() -> Inode {
    Inode::Dir { current: BTreeMap::new(), durable: BTreeMap::new() }
}

/// The names along a path from the root; a relative path starts there too.
fn names(path: &Path) -> io::Result<impl Iterator<Item = &str>> {
    let plain = |c: &Component<'_>| matches!(c, Component::Normal(name) if name.to_str().is_some());
    let skipped = |c: &Component<'_>| matches!(c, Component::RootDir | Component::CurDir);
    if !path.components().all(|c| plain(&c) || skipped(&c)) {
        let message = format!("{path:?}: the simulated disk takes UTF-8 paths without '..'");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(path.components().filter_map(|c| match c {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }))
}
