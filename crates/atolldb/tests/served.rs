//! A server serves what was made in a process, and the other way round.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]

use atoll_env::{block_on, os};
use atoll_kv::NodeOptions;
use atoll_redis::{Config, Identity};
use atoll_server::Engine;
use atolldb::{Database, Isolation, KeyRange, Kind, Options};

/// Runs `work` as a client of a server on a directory.
fn serve(path: &std::path::Path, stores: u16, work: impl AsyncFnOnce(atoll_keyspaces::Client)) {
    let env = os::env().unwrap();
    block_on(async {
        let mut options = NodeOptions::new(env.clone(), path);
        options.cores = 2;
        options.stores = stores;
        options.shards = stores.max(2);
        let identity =
            Identity { version: "test", process_id: 1, run_id: 1, measure: None, allocator: "" };
        let engine = Engine::start(options, Config::default(), identity).await.unwrap();
        work(engine.client()).await;
        engine.stop().await.unwrap();
    });
}

#[test]
fn a_directory_goes_from_process_to_server_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let hashed = Options { kind: Kind::hashed(8).unwrap(), ttl: None };
    {
        let db = Database::builder(&path).cores(1).stores(2).open().unwrap();
        let made_here = db.create_keyspace("made/here", hashed).unwrap();
        for n in 0..100u32 {
            db.put(&made_here, n.to_be_bytes(), n.to_string()).unwrap();
        }
        db.close().unwrap();
    }
    serve(&path, 1, async |client| {
        let made_here = client.keyspace("made/here").await.unwrap();
        assert_eq!(client.count(&made_here).await, Ok(100));
        let made_there = client.create_keyspace("made/there", hashed).await.unwrap().0;
        let mut tx = client.begin(Isolation::Serializable);
        let rows = tx.scan(&made_here, KeyRange::all(), false, 1_000).await.unwrap();
        assert_eq!(rows.rows.len(), 100);
        for row in rows.rows {
            let expiry = atolldb::Expiry::Default;
            tx.put(&made_there, &row.key, &row.value, expiry).await.unwrap();
        }
        tx.commit().await.unwrap();
    });
    let db = Database::open(&path).unwrap();
    let made_there = db.keyspace("made/there").unwrap();
    let mut tx = db.begin(Isolation::Snapshot);
    let rows: Vec<_> = tx.scan(&made_there, KeyRange::all()).map(Result::unwrap).collect();
    assert_eq!(rows.len(), 100);
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row.key, (n as u32).to_be_bytes());
        assert_eq!(row.value, n.to_string().as_bytes());
    }
    drop(tx);
    // An id of before is not given again, whoever gives it.
    let new = db.create_keyspace("new", hashed).unwrap();
    assert!(new.info().id > made_there.info().id);
    db.close().unwrap();
    serve(&path, 2, async |client| {
        let names = client.keyspaces(KeyRange::all(), 10).await.unwrap().0;
        let names: Vec<&str> = names.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["made/here", "made/there", "new"]);
    });
}
