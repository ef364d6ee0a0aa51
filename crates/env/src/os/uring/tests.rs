//! Rings on this machine. Where it grants none, the tests say so and have shown that threads do.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::disk::{DiskStatus, File, FileUse, IoClass, IoTag, OpenMode};
use crate::os::{Backend, DirectIo, IoOptions, env_with};
use crate::task::{LocalBoxFuture, block_on};
use crate::{Env, IoBuf};

const TAG: IoTag = IoTag::new(IoClass::Log, "test");

fn env(backend: Backend, direct: DirectIo) -> Env {
    env_with(IoOptions { backend, direct, ..IoOptions::default() }).unwrap()
}

/// Runs what `make` returns on a core of its own and returns what it did.
fn on_core<T, F>(env: &Env, make: impl FnOnce(Env) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (done, result) = mpsc::channel();
    let inside = env.clone();
    let make = move || {
        let main = make(inside);
        Box::pin(async move { done.send(main.await).unwrap() }) as LocalBoxFuture
    };
    env.tasks.spawn_core(0, "core", None, Box::new(make)).unwrap();
    result.recv().unwrap()
}

fn rings(status: &DiskStatus) -> bool {
    let rings = status.backend == "io_uring";
    if !rings {
        println!("no rings here: {:?}", status.degraded);
    }
    rings
}

async fn all<T>(mut futures: Vec<crate::IoFuture<'_, T>>) -> Vec<std::io::Result<T>> {
    let mut results: Vec<_> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(done) = future.as_mut().poll(cx)
            {
                *result = Some(done);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

async fn new_file(env: &Env, path: &Path, usage: FileUse) -> Arc<dyn File> {
    env.disk.open_for(path, OpenMode::CreateNew, usage).await.unwrap()
}

#[test]
fn what_a_turn_gathered_is_handed_over_together_however_much_it_is() {
    const COUNT: u64 = 1_000;
    let (dir, env) = (tempfile::tempdir().unwrap(), env(Backend::Auto, DirectIo::Off));
    let path = dir.path().join("file");
    let calls = on_core(&env, move |env| async move {
        let file = new_file(&env, &path, FileUse::Plain).await;
        let class = |n| if n % 2 == 0 { IoClass::Log } else { IoClass::Compaction };
        let writes = (0..COUNT).map(|n| {
            let tag = IoTag::new(class(n), "test");
            file.write_at(tag, n * 8, IoBuf::from(&n.to_le_bytes()[..]))
        });
        assert!(all(writes.collect()).await.iter().all(Result::is_ok));
        // Only the reads are counted: what is in the page cache is there as soon as it is handed
        // over, whereas the kernel's workers finish a file's first writes when they are scheduled,
        // and each of them may make room for one more.
        let written = env.disk.status().ring_submissions;
        let reads = (0..COUNT).map(|n| file.read_at(TAG, n * 8, IoBuf::zeroed(8)));
        for (n, read) in (0..).zip(all(reads.collect()).await) {
            assert_eq!(read.unwrap()[..], u64::to_le_bytes(n));
        }
        env.disk.status().ring_submissions - written
    });
    let status = env.disk.status();
    if rings(&status) {
        assert_eq!((status.ring_transfers, status.thread_transfers), (2 * COUNT, 0));
        assert!(calls < COUNT / 8, "{calls} calls for {COUNT} transfers");
    }
    assert_eq!(status.bytes[IoClass::Compaction as usize], COUNT / 2 * 8);
}

#[test]
fn urgent_transfers_pass_background_ones_that_were_asked_for_before() {
    let (dir, env) = (tempfile::tempdir().unwrap(), env(Backend::Auto, DirectIo::Off));
    if !rings(&env.disk.status()) {
        return;
    }
    let path = dir.path().join("file");
    let order = Arc::new(Mutex::new(Vec::new()));
    let told = order.clone();
    on_core(&env, move |env| async move {
        let file = new_file(&env, &path, FileUse::Plain).await;
        // What is in the page cache is there as soon as it is handed over.
        file.write_at(TAG, 0, IoBuf::zeroed(8 * 501)).await.unwrap();
        let classes = std::iter::repeat_n(IoClass::Scrub, 500).chain([IoClass::Log]);
        let tasks: Vec<_> = classes
            .zip(0..)
            .map(|(class, n)| {
                let (file, order) = (file.clone(), told.clone());
                let (done, finished) = crate::sync::oneshot::channel();
                let task = async move {
                    let tag = IoTag::new(class, "test");
                    file.read_at(tag, n * 8, IoBuf::zeroed(8)).await.unwrap();
                    order.lock().push(class);
                    _ = done.send(());
                };
                env.tasks.spawn_local("reader", Box::pin(task));
                finished
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let at = order.lock().iter().position(|class| *class == IoClass::Log).unwrap();
    assert!(at <= 32, "{at} background transfers were before it");
}

#[test]
fn a_transfer_that_is_dropped_runs_to_its_end_on_its_own_buffer() {
    let (dir, env) = (tempfile::tempdir().unwrap(), env(Backend::Auto, DirectIo::All));
    let path = dir.path().join("file");
    on_core(&env, move |env| async move {
        let file = new_file(&env, &path, FileUse::Table).await;
        let mut cx = Context::from_waker(Waker::noop());
        for n in 0..200u64 {
            // Polled once, so that it is under way, and dropped before or after the kernel has it.
            let buf = IoBuf::from(&vec![n as u8 + 1; 8192][..]);
            let mut write = file.write_at(TAG, n * 8192, buf);
            assert!(write.as_mut().poll(&mut cx).is_pending());
            let mut read = file.read_at(TAG, n * 8192 / 2 + 100, IoBuf::zeroed(3000));
            assert!(read.as_mut().poll(&mut cx).is_pending());
            if n % 2 == 0 {
                crate::task::yield_now().await;
            }
            drop((write, read));
            // What would be overwritten if the buffers were free.
            let other = IoBuf::zeroed(8192);
            assert!(other.iter().all(|byte| *byte == 0));
        }
        // Transfers of one class start in order, but end in any: the last of them says little.
        while file.len().await.unwrap() < 200 * 8192 {
            crate::task::yield_now().await;
        }
        let mut good = 0;
        for _ in 0..100_000 {
            if good == 200 {
                return;
            }
            let content = file.read_at(TAG, good * 8192, IoBuf::zeroed(8192)).await.unwrap();
            good += u64::from(content.iter().all(|byte| *byte == good as u8 + 1));
        }
        panic!("write {good} has other bytes than were given");
    });
}

#[test]
fn a_core_that_ends_finishes_what_it_has_handed_over_and_says_so_to_who_still_waits() {
    let (dir, env) = (tempfile::tempdir().unwrap(), env(Backend::Auto, DirectIo::Off));
    let path = dir.path().join("file");
    let file = block_on(new_file(&env, &path, FileUse::Plain));
    let inside = file.clone();
    let (sender, left) = mpsc::channel();
    on_core(&env, move |_| async move {
        let mut cx = Context::from_waker(Waker::noop());
        for n in 0..50 {
            let inside = inside.clone();
            let mut write: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move {
                    inside.write_sync(TAG, TAG, n * 4096, IoBuf::from(&[7; 4096][..])).await
                });
            assert!(write.as_mut().poll(&mut cx).is_pending());
            sender.send(write).unwrap();
        }
        crate::task::yield_now().await;
    });
    // Each answer is one that came, or one that says that none will: nobody waits for ever.
    let answers: Vec<_> = left.iter().map(block_on).collect();
    assert_eq!(answers.len(), 50);
    let written = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
    assert!(block_on(file.len()).unwrap() >= written * 4096);
    for error in answers.into_iter().filter_map(Result::err) {
        assert!(error.to_string().contains("ended before"), "{error}");
    }
}

#[test]
fn errors_of_completions_are_those_of_calls() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = |backend, name: &str| {
        let (path, env) = (dir.path().join(name), env(backend, DirectIo::Off));
        on_core(&env, move |env| async move {
            new_file(&env, &path, FileUse::Plain).await;
            let file = env.disk.open(&path, OpenMode::Read).await.unwrap();
            let buf = || IoBuf::from(&[1; 10][..]);
            let full = env.disk.open(Path::new("/dev/full"), OpenMode::ReadWrite).await.unwrap();
            [
                file.write_at(TAG, 0, buf()).await.map(drop),
                file.write_sync(TAG, TAG, 0, buf()).await.map(drop),
                file.read_at(TAG, 0, buf()).await.map(drop),
                file.read_at(TAG, u64::MAX - 1, buf()).await.map(drop),
                full.write_at(TAG, 0, buf()).await.map(drop),
                full.write_sync(TAG, TAG, 0, buf()).await.map(drop),
                full.sync(TAG).await,
            ]
            .map(|result| result.unwrap_err().kind())
        })
    };
    let threads = kinds(Backend::Threads, "threads");
    assert_eq!(kinds(Backend::Auto, "ring"), threads);
    assert_eq!(threads[4], std::io::ErrorKind::StorageFull);
}

#[test]
fn a_file_system_without_direct_io_is_used_without_and_that_is_told_once() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = lines.clone();
    let env = env_with(IoOptions {
        direct: DirectIo::All,
        backend: Backend::Threads,
        report: Some(Arc::new(move |line| told.lock().push(line.to_owned()))),
        ..IoOptions::default()
    })
    .unwrap();
    for _ in 0..2 {
        let path = Path::new("/proc/self/status");
        let file = block_on(env.disk.open_for(path, OpenMode::Read, FileUse::Table)).unwrap();
        let name = block_on(file.read_at(TAG, 0, IoBuf::zeroed(5))).unwrap();
        assert_eq!(name[..], *b"Name:");
    }
    let expected = "direct I/O: the file system has none";
    assert_eq!(env.disk.status().degraded, [expected]);
    assert_eq!(*lines.lock(), [format!("not granted, going on without: {expected}")]);
}

/// Forbids this thread `io_uring_setup`, as the default profile of container runtimes does.
fn forbid_rings() {
    const SETUP: u32 = libc::SYS_io_uring_setup as u32;
    const ERRNO_EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SETUP),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, ERRNO_EPERM),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the calls return; the kernel copies them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the filter is to die with its thread")]
fn where_rings_are_forbidden_threads_take_their_place_unless_rings_were_insisted_on() {
    let forbidden = std::thread::spawn(|| {
        forbid_rings();
        let Err(refused) = env_with(IoOptions { backend: Backend::Uring, ..IoOptions::default() })
        else {
            panic!("rings are forbidden")
        };
        assert!(refused.to_string().contains("seccomp"), "{refused}");
        let env = env(Backend::Auto, DirectIo::Off);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        on_core(&env, move |env| async move {
            let file = new_file(&env, &path, FileUse::Log).await;
            file.write_sync(TAG, TAG, 0, IoBuf::from(&b"hello"[..])).await.unwrap();
            assert_eq!(file.read_at(TAG, 0, IoBuf::zeroed(5)).await.unwrap()[..], *b"hello");
        });
        env.disk.status()
    });
    let status = forbidden.join().unwrap();
    assert_eq!((status.backend, status.rings, status.thread_transfers), ("threads", 0, 2));
    assert!(status.degraded[0].starts_with("io_uring: forbidden by seccomp"), "{status:?}");
}

#[test]
fn background_work_keeps_to_its_ceiling_and_nobody_else_waits() {
    let limit = crate::throttle::Limit::Fixed(1 << 10);
    let env = env_with(IoOptions { limit, ..IoOptions::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let scrub = IoTag::new(IoClass::Scrub, "test");
    block_on(async {
        let file = new_file(&env, &path, FileUse::Plain).await;
        file.write_at(scrub, 0, IoBuf::zeroed(1 << 18)).await.unwrap();
        // The bucket is overdrawn for minutes now, for those who wait for it.
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = file.write_at(scrub, 0, IoBuf::zeroed(100));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        for class in [IoClass::Log, IoClass::Read, IoClass::Flush] {
            file.write_at(IoTag::new(class, "test"), 0, IoBuf::zeroed(100)).await.unwrap();
        }
        assert!(waits.as_mut().poll(&mut cx).is_pending());
    });
    let status = env.disk.status();
    assert_eq!(status.background_rate, Some(1 << 10));
    assert!(status.background_waited_us > 0);
    assert_eq!(status.bytes[IoClass::Scrub as usize], 1 << 18);
}
