//! The registry: keyspaces that are known in this process, and the door at which commits and drops
//! meet.
//!
//! ```text
//!   Keyspace handles --+
//!   registry by name --+--> Entry { info, commits: closed? | how many are under way }
//!
//!   commit:  enter every entry it used  ->  commit  ->  leave
//!   drop:    close the entries of the family, wait for those who are in  ->  commit the drop
//! ```
//!
//! Looking every transaction's keyspaces up in the catalog would be right by itself (the read would
//! be validated), at the price of another shard in every transaction. So what was read is kept, and
//! a drop sees to it that nobody relies on what is kept any more: **whoever commits in a keyspace has
//! entered it; who drops it has closed it before the moment of the drop is chosen, and nobody is in.**
//! A commit thus lies wholly before the drop, or does not happen.
//!
//! What is looked up while a drop is on its way could be kept too late, so look-ups in a family that
//! is being dropped wait for its end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use event_listener::Event;
use parking_lot::Mutex;

use crate::catalog::{Info, Options, is_of};
use crate::error::{Error, Result};

/// No commit may enter any more.
const CLOSED: u32 = 1 << 31;

/// A keyspace that is open. Cheap to clone; knows when it was dropped.
#[derive(Clone)]
pub struct Keyspace {
    entry: Arc<Entry>,
}

struct Entry {
    info: Info,
    /// [`CLOSED`], and how many commits are under way.
    commits: AtomicU32,
    /// The last commit has left a closed entry.
    left: Event,
}

impl Keyspace {
    fn new(info: Info) -> Keyspace {
        Keyspace { entry: Arc::new(Entry { info, commits: AtomicU32::new(0), left: Event::new() }) }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.entry.info.name
    }

    /// Returns the options it was created with.
    pub fn options(&self) -> Options {
        self.entry.info.options
    }

    /// Returns everything that is known of it.
    pub fn info(&self) -> &Info {
        &self.entry.info
    }

    pub(crate) fn id(&self) -> u32 {
        self.entry.info.id
    }

    /// Refuses a keyspace that was dropped.
    pub(crate) fn check(&self) -> Result<()> {
        if self.entry.commits.load(Ordering::Acquire) & CLOSED != 0 {
            return Err(Error::Dropped(self.name().to_owned()));
        }
        Ok(())
    }

    /// Begins a commit in it: it is not dropped before the guard is gone.
    pub(crate) fn enter(&self) -> Result<Entered> {
        let before = self.entry.commits.fetch_add(1, Ordering::AcqRel);
        let entered = Entered { entry: self.entry.clone() };
        if before & CLOSED != 0 {
            return Err(Error::Dropped(self.name().to_owned()));
        }
        Ok(entered)
    }

    fn close(&self) {
        self.entry.commits.fetch_or(CLOSED, Ordering::AcqRel);
    }

    fn reopen(&self) {
        self.entry.commits.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Waits until nobody commits in it, once it is closed.
    async fn emptied(&self) {
        loop {
            let left = self.entry.left.listen();
            if self.entry.commits.load(Ordering::Acquire) == CLOSED {
                return;
            }
            left.await;
        }
    }
}

impl PartialEq for Keyspace {
    fn eq(&self, other: &Keyspace) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Keyspace {}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyspace({} {})", self.name(), self.options())
    }
}

/// A commit is under way in a keyspace.
pub(crate) struct Entered {
    entry: Arc<Entry>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.entry.commits.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            self.entry.left.notify(usize::MAX);
        }
    }
}

/// The keyspaces that are known.
#[derive(Default)]
pub(crate) struct Registry {
    state: Mutex<State>,
    /// A drop has ended.
    dropped: Event,
}

#[derive(Default)]
struct State {
    known: BTreeMap<String, Keyspace>,
    /// Families that are being dropped.
    dropping: Vec<String>,
    /// Counts drops: what was looked up before one began is not kept after it.
    drops: u64,
}

impl State {
    fn is_being_dropped(&self, name: &str) -> bool {
        self.dropping.iter().any(|family| is_of(name, family))
    }
}

impl Registry {
    /// Returns a keyspace that is known.
    pub(crate) fn known(&self, name: &str) -> Option<Keyspace> {
        self.state.lock().known.get(name).cloned()
    }

    /// Returns a keyspace, looked up by `look` unless it is known; `None` if there is none.
    pub(crate) async fn find(
        &self,
        name: &str,
        mut look: impl AsyncFnMut() -> Result<Option<Info>>,
    ) -> Result<Option<Keyspace>> {
        loop {
            let ended = self.dropped.listen();
            let drops = {
                let state = self.state.lock();
                match state.known.get(name) {
                    _ if state.is_being_dropped(name) => None,
                    Some(known) => return Ok(Some(known.clone())),
                    None => Some(state.drops),
                }
            };
            let Some(drops) = drops else {
                ended.await;
                continue;
            };
            let found = look().await?;
            let mut state = self.state.lock();
            if state.drops != drops || state.is_being_dropped(name) {
                // It may be gone since: look again.
                continue;
            }
            let Some(info) = found else { return Ok(None) };
            let known = state.known.entry(name.to_owned());
            return Ok(Some(known.or_insert_with(|| Keyspace::new(info)).clone()));
        }
    }

    /// Closes a family, and waits until nobody commits in it.
    pub(crate) async fn close(&self, family: &str) -> Closing<'_> {
        let closing = loop {
            let ended = self.dropped.listen();
            {
                let mut state = self.state.lock();
                let overlaps = |other: &String| is_of(family, other) || is_of(other, family);
                if !state.dropping.iter().any(overlaps) {
                    state.dropping.push(family.to_owned());
                    state.drops += 1;
                    let of_family = |(name, _): &(&String, &Keyspace)| is_of(name, family);
                    let known = state.known.iter().filter(of_family);
                    let closed: Vec<Keyspace> = known.map(|(_, known)| known.clone()).collect();
                    break Closing {
                        registry: self,
                        family: family.to_owned(),
                        closed,
                        kept: false,
                    };
                }
            }
            ended.await;
        };
        closing.closed.iter().for_each(Keyspace::close);
        for keyspace in &closing.closed {
            keyspace.emptied().await;
        }
        closing
    }
}

/// A family that is closed. When this is gone, what is known of the family is forgotten, or
/// ([`Closing::keep`]) open as before.
pub(crate) struct Closing<'r> {
    registry: &'r Registry,
    family: String,
    closed: Vec<Keyspace>,
    kept: bool,
}

impl Closing<'_> {
    /// The family was certainly not dropped.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.state.lock();
        state.dropping.retain(|family| *family != self.family);
        for keyspace in &self.closed {
            if self.kept {
                keyspace.reopen();
            } else {
                state.known.remove(keyspace.name());
            }
        }
        self.registry.dropped.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use atoll_env::block_on;

    use super::*;

    fn info(name: &str, id: u32) -> Info {
        Info { name: name.to_owned(), id, options: Options::default(), created_ms: 0 }
    }

    /// Polls once; returns whether it is pending.
    async fn waits(future: impl Future) -> bool {
        let mut future = pin!(future);
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[test]
    fn a_keyspace_is_looked_up_once_and_again_when_it_was_dropped() {
        block_on(async {
            let registry = Registry::default();
            let looks = Cell::new(0);
            let find = || {
                registry.find("a/b", async || {
                    looks.set(looks.get() + 1);
                    Ok(Some(info("a/b", looks.get())))
                })
            };
            let first = find().await.unwrap().unwrap();
            assert_eq!(find().await.unwrap().unwrap(), first);
            assert_eq!(looks.get(), 1);
            drop(registry.close("a").await);
            assert!(first.check().is_err() && first.enter().is_err());
            let second = find().await.unwrap().unwrap();
            assert_ne!(first, second);
            second.check().unwrap();
        });
    }

    #[test]
    fn a_drop_waits_for_commits_and_lets_none_in() {
        block_on(async {
            let registry = Registry::default();
            let keyspace = registry.find("a", async || Ok(Some(info("a", 7)))).await.unwrap();
            let keyspace = keyspace.unwrap();
            let entered = keyspace.enter().unwrap();
            let mut closing = pin!(registry.close("a"));
            let mut polled = poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending()));
            assert!((&mut polled).await, "somebody is in");
            assert!(keyspace.enter().is_err(), "the door is closed already");
            drop(entered);
            closing.await.keep();
            keyspace.enter().unwrap();
        });
    }

    #[test]
    fn look_ups_wait_for_the_end_of_a_drop_and_what_was_seen_before_it_is_not_kept() {
        block_on(async {
            let registry = Registry::default();
            let closing = registry.close("a").await;
            let look = async || Ok(Some(info("a/x", 9)));
            assert!(waits(registry.find("a/x", look)).await);
            assert!(waits(registry.close("a/x")).await, "a drop in it as well");
            assert!(!waits(registry.find("b", async || Ok(None))).await);
            drop(closing);
            // A drop that begins and ends during a look-up.
            let looks = Cell::new(0);
            let found = registry.find("a/x", async || {
                looks.set(looks.get() + 1);
                if looks.get() == 1 {
                    drop(registry.close("a").await);
                    return Ok(Some(info("a/x", 9)));
                }
                Ok(None)
            });
            assert_eq!(found.await.unwrap(), None);
            assert_eq!(looks.get(), 2);
        });
    }
}
