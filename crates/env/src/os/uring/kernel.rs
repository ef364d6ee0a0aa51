//! The ring as the kernel sees it: the one place that hands it memory, and so the one that is `unsafe`.
//!
//! ```text
//!   push --> slot [transfer, whom to tell]      entries --> submit --> kernel
//!                                                                        |
//!   told  <-- slot is free again  <-- all completions of it are in <-----+
//! ```
//!
//! # Invariants
//! - A transfer lies in its slot from before its entries are made until *every* completion of them
//!   was read: buffer and descriptor outlive what the kernel does with them, whoever lost interest.
//! - A slot has at most two entries, and there are twice as many places for entries as slots: an entry
//!   always finds a place, and completions never overflow.
//! - A ring that goes waits for what it handed over. If that cannot be waited for, the memory is leaked,
//!   because freed memory that the kernel writes to is worse than lost memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, Probe, opcode, types};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::buf::IoBuf;
use crate::os::transfer::{Bounce, Call, Next, Outcome, Transfer};

/// Registered buffers of a ring, for widened reads, and their size: what `RLIMIT_MEMLOCK` commonly
/// bears for several rings.
const BOUNCES: usize = 16;
const BOUNCE_LEN: usize = 64 << 10;

/// A ring, its slots, and for each whom to tell.
pub(super) struct Kernel<T> {
    ring: IoUring,
    slots: Vec<Option<Flight<T>>>,
    free: Vec<u32>,
    /// Registered buffers that are not in use, with their indexes.
    bounces: Vec<(IoBuf, u16)>,
    /// Whether there are entries that the kernel has not seen.
    staged: bool,
    /// The kernel refused to go on.
    broken: bool,
    /// Completions, while they are sorted.
    arrived: Vec<(u64, i32)>,
}

struct Flight<T> {
    transfer: Transfer,
    /// Whom to tell, unless that was given up.
    tell: Option<T>,
    /// Completions that are still to come.
    pending: u8,
    /// The kernel took entries in two parts, and may have cut the link between this one's: then the
    /// sync did not wait for the write.
    torn: bool,
    outcome: Outcome,
}

/// Which entry of a slot a completion belongs to.
const MAIN: u64 = 0;
const LINKED_SYNC: u64 = 1;

impl<T> Kernel<T> {
    /// Opens a ring for so many transfers at once.
    pub(super) fn open(slots: u32) -> io::Result<Kernel<T>> {
        let entries = 2 * slots;
        // Without interrupts: completions are taken when the thread comes to the kernel anyway, as it
        // does at the end of every turn. Kernels before 6.0 do not know these flags.
        let ring =
            match IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries) {
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    IoUring::new(entries)?
                }
                ring => ring?,
            };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
        if !needed.iter().all(|&code| probe.is_supported(code))
            || !ring.params().is_feature_nodrop()
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring is older than 5.6",
            ));
        }
        Ok(Kernel {
            ring,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            bounces: Vec::new(),
            staged: false,
            broken: false,
            arrived: Vec::new(),
        })
    }

    /// Registers buffers for widened reads, which saves the kernel from looking up their pages each
    /// time.
    ///
    /// # Errors
    /// They cannot be locked into memory. Reads then go into ordinary buffers.
    pub(super) fn register_bounces(&mut self) -> io::Result<()> {
        let mut bounces: Vec<IoBuf> = (0..BOUNCES).map(|_| IoBuf::zeroed(BOUNCE_LEN)).collect();
        let vectors: Vec<libc::iovec> = bounces
            .iter_mut()
            .map(|buf| libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() })
            .collect();
        // SAFETY: each vector is the whole initialised memory of a buffer. The kernel keeps the pages
        // pinned until the ring is closed, and writes to them only for entries that name them, which
        // `entries` makes while the buffer lies in a slot.
        unsafe { self.ring.submitter().register_buffers(&vectors)? };
        self.bounces = bounces.into_iter().zip(0..).collect();
        Ok(())
    }

    /// Registers the ring with the reactor of this thread: it is readable while completions are there.
    pub(super) fn register(&self) -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: the ring is open for as long as `self` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by what is registered, which hands out no other.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(registered?)
    }

    /// Takes a transfer, or gives it back if all slots are taken.
    pub(super) fn push(&mut self, transfer: Transfer, tell: T) -> Result<(), (Transfer, T)> {
        if self.broken {
            return Err((transfer, tell));
        }
        let Some(slot) = self.free.pop() else { return Err((transfer, tell)) };
        let outcome = Outcome { result: Ok(0), synced: None };
        self.slots[slot as usize] =
            Some(Flight { transfer, tell: Some(tell), pending: 0, torn: false, outcome });
        self.stage(slot);
        Ok(())
    }

    /// Makes the entries of the transfer in a slot.
    fn stage(&mut self, slot: u32) {
        let Some(flight) = &mut self.slots[slot as usize] else { return };
        if let Some(len) = flight.transfer.wants_bounce() {
            let registered = if len <= BOUNCE_LEN { self.bounces.pop() } else { None };
            flight.transfer.bounce = Some(match registered {
                Some((buf, index)) => Bounce { buf, fixed: Some(index) },
                None => Bounce { buf: IoBuf::zeroed(len), fixed: None },
            });
        }
        let (main, sync) = entries(&mut flight.transfer, u64::from(slot) << 1);
        flight.outcome = Outcome { result: Ok(0), synced: None };
        flight.pending = 1 + u8::from(sync.is_some());
        flight.torn = false;
        let mut queue = self.ring.submission();
        let pair = sync.map(|sync| [main.clone(), sync]);
        let both = pair.as_ref().map_or(std::slice::from_ref(&main), |pair| &pair[..]);
        // SAFETY: the entries name memory and a descriptor of the transfer in the slot, neither of
        // which moves or is freed before `pending` completions were read (`reap`, `Drop`).
        let pushed = unsafe { queue.push_multiple(both) };
        assert!(pushed.is_ok(), "there are two places for every slot");
        self.staged = true;
    }

    /// Hands over what is staged, by one system call, and waits until `wait` completions are there.
    /// Returns whether there was such a call.
    ///
    /// # Errors
    /// The kernel refuses to go on; nothing can be started any more.
    pub(super) fn submit(&mut self, wait: usize) -> io::Result<bool> {
        if self.broken || !(self.staged || wait > 0) {
            return Ok(false);
        }
        match self.ring.submitter().submit_and_wait(wait) {
            Ok(_) => {
                self.staged = !self.ring.submission().is_empty();
                if self.staged {
                    self.slots.iter_mut().flatten().for_each(|flight| flight.torn = true);
                }
                Ok(true)
            }
            // Short of memory, or interrupted: whoever calls comes again.
            Err(e) if is_passing(&e) => Ok(true),
            Err(e) => {
                self.broken = true;
                Err(e)
            }
        }
    }

    /// Tells nobody any more, after the kernel refused to go on: what it may still work on stays.
    pub(super) fn abandon(&mut self) {
        self.slots.iter_mut().flatten().for_each(|flight| flight.tell = None);
    }

    /// Returns whether entries are left that the kernel has not taken.
    pub(super) fn is_staged(&self) -> bool {
        self.staged && !self.broken
    }

    /// Reads completions and tells about transfers that are over. Returns how many completions
    /// there were.
    pub(super) fn reap(&mut self, mut told: impl FnMut(T, io::Result<IoBuf>)) -> usize {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        let count = arrived.len();
        for (data, result) in arrived.drain(..) {
            let slot = (data >> 1) as u32;
            let Some(Some(flight)) = self.slots.get_mut(slot as usize) else { continue };
            let result = usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
            if data & 1 == LINKED_SYNC {
                flight.outcome.synced = Some(result.map(drop));
            } else {
                flight.outcome.result = result;
            }
            flight.pending -= 1;
            if flight.pending > 0 {
                continue;
            }
            if flight.torn && flight.outcome.synced == Some(Ok(())) {
                // It may be older than the write: one more comes.
                flight.outcome.synced = None;
            }
            match flight.transfer.advance(flight.outcome) {
                Next::Again => {
                    self.take_back_bounce(slot, false);
                    self.stage(slot);
                }
                Next::Done(result) => {
                    self.take_back_bounce(slot, true);
                    if let Some(flight) = self.slots[slot as usize].take() {
                        self.free.push(slot);
                        if let Some(tell) = flight.tell {
                            told(tell, result);
                        }
                    }
                }
            }
        }
        self.arrived = arrived;
        count
    }

    /// Takes back a registered buffer that the transfer does not need any more.
    fn take_back_bounce(&mut self, slot: u32, over: bool) {
        let Some(flight) = &mut self.slots[slot as usize] else { return };
        if let Some(Bounce { buf, fixed: Some(index) }) = flight.transfer.spent_bounce(over) {
            self.bounces.push((buf, index));
        }
    }
}

impl<T> Drop for Kernel<T> {
    fn drop(&mut self) {
        let mut pending: usize = self.slots.iter().flatten().map(|f| usize::from(f.pending)).sum();
        while pending > 0 && self.submit(1).is_ok() && !self.broken {
            pending = pending.saturating_sub(self.ring.completion().count());
        }
        if pending > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Makes the entry of a transfer's next call, and that of the sync linked behind a write.
fn entries(transfer: &mut Transfer, data: u64) -> (Entry, Option<Entry>) {
    let fd = types::Fd(transfer.file().as_raw_fd());
    let fixed = transfer.bounce.as_ref().and_then(|bounce| bounce.fixed);
    let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
    match transfer.call() {
        Call::Read { from, len, offset } => {
            let memory = &mut transfer.memory()[from..from + len];
            let (start, len) = (memory.as_mut_ptr(), len as u32);
            let read = match fixed {
                Some(index) => opcode::ReadFixed::new(fd, start, len, index).offset(offset).build(),
                None => opcode::Read::new(fd, start, len).offset(offset).build(),
            };
            (read.user_data(data | MAIN), None)
        }
        Call::Write { from, len, offset, sync: synced } => {
            let memory = &transfer.memory()[from..from + len];
            let write = opcode::Write::new(fd, memory.as_ptr(), len as u32).offset(offset).build();
            let write = write.user_data(data | MAIN);
            if !synced {
                return (write, None);
            }
            (write.flags(Flags::IO_LINK), Some(sync.user_data(data | LINKED_SYNC)))
        }
        Call::Sync => (sync.user_data(data | MAIN), None),
    }
}
