//! Measures what a program gets: single steps, transactions, scans.
//!
//! ```sh
//! cargo run --release -p atolldb --example rates -- /path/on/the/disk [synced|interval|buffered]
//! ```

use std::error::Error as Failure;
use std::time::Duration;

use atoll_env::Clock;
use atolldb::{Database, Durability, Error, Isolation, KeyRange, Kind, Options};

const THREADS: usize = 8;
const TIME: Duration = Duration::from_secs(3);
const ROWS: u32 = 100_000;

fn main() -> Result<(), Box<dyn Failure>> {
    let mut words = std::env::args().skip(1);
    let path = words.next().ok_or("name a directory to make the database in")?;
    let durability: Durability = words.next().as_deref().unwrap_or("synced").parse()?;
    let db = Database::builder(path).durability(durability).open()?;
    let env = atoll_env::os::env()?;
    let clock = &*env.clock;
    let hashed = Options { kind: Kind::hashed(16).ok_or("a power of two")?, ttl: None };
    let k = db.create_keyspace("rates/hashed", hashed)?;
    let ordered = db.create_keyspace("rates/ordered", Options::default())?;
    let value = [7u8; 100];

    for chunk in 0..ROWS / 1_000 {
        db.transaction(|tx| {
            for n in chunk * 1_000..(chunk + 1) * 1_000 {
                tx.put(&k, n.to_be_bytes(), value)?;
                tx.put(&ordered, n.to_be_bytes(), value)?;
            }
            Ok::<_, Error>(())
        })?;
    }
    let key = |thread: usize, n: u64| {
        (((n * 7_919 + thread as u64 * 12_345) % 100_000) as u32).to_be_bytes()
    };
    println!("{} threads, durability {}", THREADS, durability.name());
    for (name, threads) in [("one thread", 1), ("all threads", THREADS)] {
        measure(clock, &format!("get, {name}"), threads, &|thread, n| {
            db.get(&k, key(thread, n)).map(|_| ())
        })?;
        measure(clock, &format!("put, {name}"), threads, &|thread, n| {
            db.put(&k, key(thread, n), value)
        })?;
        measure(
            clock,
            &format!("transaction of two reads and two writes, {name}"),
            threads,
            &|thread, n| {
                db.transaction(|tx| {
                    let (a, b) = (key(thread, n), key(thread, n + 1));
                    tx.get(&k, a)?;
                    tx.get(&k, b)?;
                    tx.put(&k, a, value)?;
                    tx.put(&k, b, value)
                })
            },
        )?;
    }
    for (name, keyspace) in [("ordered", &ordered), ("hashed(16)", &k)] {
        let before = clock.now();
        let mut tx = db.begin(Isolation::Snapshot);
        let mut rows = 0u32;
        for row in tx.scan(keyspace, KeyRange::all()) {
            row?;
            rows += 1;
        }
        let rate = f64::from(rows) / clock.now().since(before).as_secs_f64();
        println!("{rate:>12.0} rows/s   scan of {rows} rows, {name}");
    }
    db.close()?;
    Ok(())
}

/// Runs a step on threads for a while and prints how often it ran in a second.
fn measure(
    clock: &dyn Clock,
    name: &str,
    threads: usize,
    step: &(dyn Fn(usize, u64) -> Result<(), Error> + Sync),
) -> Result<(), Error> {
    let begin = clock.now();
    let counts = std::thread::scope(|scope| {
        let work = |thread| {
            scope.spawn(move || {
                let mut n = 0;
                while clock.now().since(begin) < TIME {
                    step(thread, n)?;
                    n += 1;
                }
                Ok::<u64, Error>(n)
            })
        };
        let running: Vec<_> = (0..threads).map(work).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Ok(0)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let sum: u64 = counts.iter().sum();
    let seconds = clock.now().since(begin).as_secs_f64();
    println!("{:>12.0} /s        {name}", sum as f64 / seconds);
    Ok(())
}
