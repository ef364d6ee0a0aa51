//! Restoring a generation: everything is checked on its way, and `ATOLL` comes last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use atoll_env::OpenMode;

use super::generation::{Contents, Item};
use super::shelf::Shelf;
use super::{Progress, RESTORE, Watch};
use crate::error::{Error, Result};
use crate::identity;
use crate::image::{Target, judge};
use crate::version::Paths;

/// Makes the directory `path` from a generation.
pub(super) async fn restore(
    shelf: &Shelf,
    contents: &Contents,
    path: &Path,
    watch: Watch<'_>,
) -> Result<()> {
    let mut target = Target::begin(&shelf.env, path, RESTORE).await?;
    let filled = fill(shelf, contents, &mut target, watch).await;
    if filled.is_err() {
        target.give_up().await;
    }
    filled
}

async fn fill(
    shelf: &Shelf,
    contents: &Contents,
    target: &mut Target<'_>,
    watch: Watch<'_>,
) -> Result<()> {
    let root = target.paths.root.clone();
    let total = contents.items.iter().map(|item| item.size).sum();
    let mut done = 0;
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::from([root.clone()]);
    // What makes a directory one of ours.
    let mut last: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for item in &contents.items {
        let path = root.join(&item.target);
        watch(Progress { file: &path, done, total });
        done += item.size;
        let Some(dir) = path.parent() else { continue };
        if dirs.insert(dir.to_owned()) {
            target.make_dir(dir).await?;
        }
        dirs.extend(
            dir.ancestors().take_while(|above| above.starts_with(&root)).map(Path::to_owned),
        );
        if path.file_name().is_some_and(|name| name == "ATOLL") {
            last.push((path, content(shelf, item).await?));
        } else {
            put(shelf, item, target, &path).await?;
        }
    }
    // An engine has them all, full or not.
    let stores: Vec<PathBuf> =
        dirs.iter().filter(|dir| is_store(contents, &root, dir)).cloned().collect();
    for store in &stores {
        let paths = Paths::new(store);
        for dir in [paths.log(), paths.tables(), paths.values()] {
            target.make_dir(&dir).await?;
            dirs.insert(dir);
        }
    }
    for dir in dirs.iter().rev() {
        target.sync_dir(dir).await?;
    }
    for store in &stores {
        let paths = Paths::new(store);
        let said = last.iter().find(|(path, _)| *path == paths.identity());
        let identity = said.and_then(|(_, bytes)| identity::decode(bytes).ok());
        let Some(identity) = identity else {
            return Err(Error::corruption(
                &paths.identity(),
                0,
                "the backup has no identity for it",
            ));
        };
        judge(&shelf.env, &paths, identity.id).await?;
    }
    // The one above the stores makes them count, so it is the last.
    last.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
    watch(Progress { file: &root, done, total });
    target.finish(&last).await
}

/// Returns whether the generation has an engine's directory there.
fn is_store(contents: &Contents, root: &Path, dir: &Path) -> bool {
    let current = dir.join("CURRENT");
    contents.items.iter().any(|item| root.join(&item.target) == current)
}

/// Reads a small stored file.
async fn content(shelf: &Shelf, item: &Item) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    shelf
        .read(item, async |_, bytes| {
            content.extend_from_slice(&bytes);
            Ok(bytes)
        })
        .await?;
    Ok(content)
}

/// Restores one file, durable but for its name.
async fn put(shelf: &Shelf, item: &Item, target: &mut Target<'_>, path: &Path) -> Result<()> {
    target.note(path);
    let context = |e| Error::io("writing", path, e);
    let disk = &shelf.env.disk;
    let file = disk.open(path, OpenMode::CreateNew).await.map_err(context)?;
    if item.length > item.size {
        file.allocate(RESTORE, item.length).await.map_err(context)?;
    }
    let written = &file;
    shelf
        .read(item, async |offset, bytes| {
            written.write_at(RESTORE, offset, bytes).await.map_err(context)
        })
        .await?;
    file.sync(RESTORE).await.map_err(context)
}
