//! The real half on this machine.

use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::disk::{IoClass, IoTag, OpenMode};
use crate::mesh::mesh;
use crate::sync::{Elapsed, timeout};
use crate::task::{LocalBoxFuture, block_on, may_block};
use crate::{Env, IoBuf, os};

const TAG: IoTag = IoTag::new(IoClass::Log, "test");

/// Runs a future on this thread without leave to block, as a core's event loop would.
fn run_on_event_loop<F: Future>(future: F) -> F::Output {
    struct Signal(mpsc::Sender<()>);
    impl Wake for Signal {
        fn wake(self: Arc<Self>) {
            _ = self.0.send(());
        }
    }
    let (sender, woken) = mpsc::channel();
    let waker = Waker::from(Arc::new(Signal(sender)));
    let mut future = std::pin::pin!(future);
    loop {
        assert!(!may_block());
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        woken.recv_timeout(Duration::from_secs(20)).expect("nobody woke the task");
    }
}

/// Uses every operation once and returns what it saw.
async fn exercise(env: Env, root: &Path) -> io::Result<Vec<String>> {
    let mut seen = Vec::new();
    let dir = root.join("a/b");
    env.disk.create_dir(&dir).await?;
    env.disk.create_dir(&dir).await?;
    let path = dir.join("file");
    let file = env.disk.open(&path, OpenMode::CreateNew).await?;
    seen.push(format!("{:?}", kind(env.disk.open(&path, OpenMode::CreateNew).await)));
    file.write_at(TAG, 3, IoBuf::from(&b"hello"[..])).await?;
    file.sync(TAG).await?;
    file.allocate(TAG, 10_000).await?;
    file.allocate(TAG, 0).await?;
    seen.push(format!("{} bytes", file.len().await?));
    seen.push(format!("{:?}", &file.read_at(TAG, 0, IoBuf::zeroed(10)).await?[..]));
    seen.push(format!("{:?}", kind(file.read_at(TAG, 9_999, IoBuf::zeroed(2)).await)));
    file.truncate(TAG, 5).await?;
    env.disk.rename(TAG, &path, &dir.join("renamed")).await?;
    env.disk.sync_dir(TAG, &dir).await?;
    seen.push(format!("{:?}", env.disk.list(&dir).await?));
    seen.push(format!("{:?}", env.disk.list(root).await?));
    let reader = env.disk.open(&dir.join("renamed"), OpenMode::Read).await?;
    seen.push(format!("{:?}", &reader.read_at(TAG, 0, IoBuf::zeroed(5)).await?[..]));
    seen.push(format!("{}", reader.write_at(TAG, 0, IoBuf::from(&b"x"[..])).await.is_err()));
    env.disk.remove(TAG, &dir.join("renamed")).await?;
    seen.push(format!("{:?}", kind(env.disk.open(&path, OpenMode::Read).await)));
    seen.push(format!("{:?}", kind(env.disk.remove(TAG, &path).await)));
    seen.push(format!("{:?}", kind(env.disk.list(&path).await)));
    seen.push(format!("{:?}", kind(env.disk.open(&dir, OpenMode::Read).await)));
    let lock = env.disk.lock(&dir.join("LOCK")).await?;
    seen.push(format!("{:?}", kind(env.disk.lock(&dir.join("LOCK")).await)));
    drop(lock);
    env.disk.lock(&dir.join("LOCK")).await?;
    Ok(seen)
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|e| e.kind())
}

#[test]
fn inline_calls_and_io_threads_give_the_same_results() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inline = block_on(exercise(os::env().unwrap(), one.path())).unwrap();
    let threads = run_on_event_loop(exercise(os::env().unwrap(), two.path())).unwrap();
    assert_eq!(inline, threads);
    assert_eq!(
        inline,
        [
            "Some(AlreadyExists)",
            "10000 bytes",
            "[0, 0, 0, 104, 101, 108, 108, 111, 0, 0]",
            "Some(UnexpectedEof)",
            "[DirEntry { name: \"renamed\", is_dir: false, len: 5 }]",
            "[DirEntry { name: \"a\", is_dir: true, len: 0 }]",
            "[0, 0, 0, 104, 101]",
            "true",
            "Some(NotFound)",
            "Some(NotFound)",
            "Some(NotFound)",
            "Some(IsADirectory)",
            "Some(WouldBlock)",
        ]
    );
}

#[test]
fn more_operations_than_threads_all_complete() {
    let dir = tempfile::tempdir().unwrap();
    let env = os::env().unwrap();
    let path = dir.path().join("file");
    run_on_event_loop(async {
        let file = env.disk.open(&path, OpenMode::CreateNew).await.unwrap();
        let mut writes: Vec<_> = (0..100u8)
            .map(|n| {
                let class = if n % 2 == 0 { IoClass::Compaction } else { IoClass::Log };
                let tag = IoTag::new(class, "test");
                Some(file.write_at(tag, u64::from(n), IoBuf::from(&[n][..])))
            })
            .collect();
        // All are started by the first poll of this loop, before any is waited for.
        poll_fn(|cx| {
            for slot in &mut writes {
                if let Some(write) = slot
                    && write.as_mut().poll(cx).is_ready()
                {
                    *slot = None;
                }
            }
            if writes.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let content = file.read_at(TAG, 0, IoBuf::zeroed(100)).await.unwrap();
        assert!(content.iter().copied().eq(0..100));
    });
}

#[test]
fn sleepers_wake_and_not_before_their_time() {
    let env = os::env().unwrap();
    let (sender, woken) = mpsc::channel();
    for ms in [40, 5, 20] {
        let (clock, sender) = (env.clock.clone(), sender.clone());
        let task = async move {
            let start = clock.now();
            clock.sleep(Duration::from_millis(ms)).await;
            assert!(clock.now().since(start) >= Duration::from_millis(ms));
            sender.send(ms).unwrap();
        };
        env.tasks.spawn("sleeper", Box::pin(task));
    }
    // In which order the threads get to run is the machine's business.
    let mut all: Vec<u64> =
        (0..3).map(|_| woken.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, [5, 20, 40]);
    let late = env.clock.sleep(Duration::from_secs(3600));
    let timed_out = block_on(timeout(&*env.clock, Duration::from_millis(1), late));
    assert_eq!(timed_out, Err(Elapsed));
    assert!(env.clock.wall().0 > 1_700_000_000_000, "the wall clock counts from 1970");
}

#[test]
fn spawned_work_may_block_and_runs_side_by_side() {
    let env = os::env().unwrap();
    // Each waits for all others: with a thread short, nobody would get on.
    let barrier = Arc::new(std::sync::Barrier::new(20));
    let (sender, done) = mpsc::channel();
    for _ in 0..20 {
        let (barrier, sender) = (barrier.clone(), sender.clone());
        let task = async move {
            barrier.wait();
            sender.send(may_block()).unwrap();
        };
        env.tasks.spawn("worker", Box::pin(task));
    }
    for _ in 0..20 {
        assert!(done.recv_timeout(Duration::from_secs(20)).unwrap());
    }
}

/// Runs `doomed` in a child process, the test `name` itself; returns what the child said when it died.
fn last_words(name: &str, doomed: impl FnOnce(&Env)) -> String {
    const CHILD: &str = "ATOLL_TEST_PANIC_IN_TASK";
    if std::env::var_os(CHILD).is_some() {
        let env = os::env().unwrap();
        doomed(&env);
        block_on(env.clock.sleep(Duration::from_secs(20)));
        return String::new();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("os::tests::{name}"), "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_panic_in_a_task_aborts_the_process_and_names_the_task() {
    let name = "a_panic_in_a_task_aborts_the_process_and_names_the_task";
    let words = last_words(name, |env| {
        env.tasks.spawn("doomed flush", Box::pin(async { panic!("broken invariant") }));
    });
    assert!(words.contains("'doomed flush' panicked"), "{words}");
}

#[test]
fn a_panic_on_a_core_aborts_the_process_and_names_the_core() {
    let name = "a_panic_on_a_core_aborts_the_process_and_names_the_core";
    let words = last_words(name, |env| {
        let main = async { assert!(may_block(), "broken invariant") };
        let make = || Box::pin(main) as LocalBoxFuture;
        env.tasks.spawn_core(3, "doomed", None, Box::new(make)).unwrap();
    });
    assert!(words.contains("'doomed' panicked"), "{words}");
}

#[test]
fn cores_run_on_threads_of_their_own_and_talk_over_a_mesh() {
    let env = os::env().unwrap();
    let (sender, heard) = mpsc::channel();
    for mut port in mesh(2, 4) {
        let (sender, tasks) = (sender.clone(), env.tasks.clone());
        let index = port.index();
        let make = move || {
            // What is made on the core need not be able to leave it.
            let name = Rc::new(std::thread::current().name().map(str::to_owned));
            Box::pin(async move {
                assert!(!may_block());
                let other = 1 - port.index();
                let in_local_task = name.clone();
                let (done, result) = crate::sync::oneshot::channel();
                tasks.spawn_local(
                    "greeter",
                    Box::pin(async move { _ = done.send(in_local_task.as_ref().clone()) }),
                );
                port.send(other, result.await.unwrap());
                port.arrived().await;
                port.drain(|from, name| sender.send((from, name)).unwrap());
            }) as LocalBoxFuture
        };
        env.tasks.spawn_core(index, "core", None, Box::new(make)).unwrap();
    }
    drop(sender);
    let mut heard: Vec<_> = heard.iter().collect();
    heard.sort();
    assert_eq!(heard, [(0, Some("core-0".to_owned())), (1, Some("core-1".to_owned()))]);
}

#[test]
fn a_core_stays_on_the_cpu_it_is_pinned_to() {
    let env = os::env().unwrap();
    let allowed = sched_getaffinity(None).unwrap();
    let cpu = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).unwrap();
    let (sender, pinned) = mpsc::channel();
    let make = move || {
        Box::pin(async move { sender.send(sched_getaffinity(None).unwrap()).unwrap() })
            as LocalBoxFuture
    };
    env.tasks.spawn_core(0, "core", Some(cpu), Box::new(make)).unwrap();
    let pinned = pinned.recv().unwrap();
    assert!(pinned.count() == 1 && pinned.is_set(cpu));
    for none in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU] {
        let make = Box::new(|| unreachable!("a core that could not start"));
        let error = env.tasks.spawn_core(0, "core", Some(none), make).unwrap_err().to_string();
        assert!(error.contains(&format!("CPU {none}")), "{error}");
    }
}

#[test]
fn streams_carry_bytes_both_ways_and_a_taken_port_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let env = os::env().unwrap();
        let mut listener = env.network.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr();
        let second = env.network.listen(addr).await;
        assert_eq!(kind(second), Some(io::ErrorKind::AddrInUse));
        let echo = async move {
            let (arrival, _) = listener.accept().await.unwrap();
            let mut stream = arrival.attach().unwrap();
            let mut buf = [0; 5];
            let n = poll_fn(|cx| stream.poll_read(cx, &mut buf)).await.unwrap();
            poll_fn(|cx| stream.poll_write(cx, &buf[..n])).await.unwrap();
        };
        env.tasks.spawn_local("echo", Box::pin(echo));
        let mut stream = env.network.connect(addr).await.unwrap();
        assert_eq!(poll_fn(|cx| stream.poll_write(cx, b"hello")).await.unwrap(), 5);
        poll_fn(|cx| stream.poll_shutdown(cx)).await.unwrap();
        let mut got = Vec::new();
        loop {
            let mut buf = [0; 16];
            match poll_fn(|cx| stream.poll_read(cx, &mut buf)).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&buf[..n]),
            }
        }
        assert_eq!(got, b"hello");
    });
}
